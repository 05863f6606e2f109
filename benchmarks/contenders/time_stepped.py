"""This package, ``TimeStepped``: the exact gradient of a computation on a time grid."""

from __future__ import annotations

from collections.abc import Callable

from eventprop import TimeStepped

from . import Job
from .event_driven import network_step

NOT_EQUAL = "on a grid"
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    return network_step(job, TimeStepped(job.t_end, job.dt))
