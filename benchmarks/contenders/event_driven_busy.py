"""This package, ``EventDriven``, with about 350 hidden spikes per image."""

from __future__ import annotations

from collections.abc import Callable

from eventprop import EventDriven

from . import Job, event_driven

NOT_EQUAL = "weights shifted upwards, for more hidden spikes than training leaves"
PACKAGES = event_driven.PACKAGES
SHIFT = 0.1


def training_step(job: Job) -> Callable[[int], float]:
    first, second = job.weights
    return event_driven.network_step(job, EventDriven(job.t_end), [first + SHIFT, second])
