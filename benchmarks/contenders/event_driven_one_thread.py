"""This package, ``EventDriven``, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import Job, event_driven

NOT_EQUAL = "one thread; the others have two or more"
PACKAGES = event_driven.PACKAGES


def training_step(job: Job) -> Callable[[int], float]:
    torch.set_num_threads(1)
    return event_driven.training_step(job)
