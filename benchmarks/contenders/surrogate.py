"""This package's baseline, ``SurrogateTimeStepped``: the forward pass of ``TimeStepped``, surrogate gradients."""

from __future__ import annotations

from collections.abc import Callable

from surrogate_baseline.solver import SurrogateTimeStepped

from . import Job
from .event_driven import network_step

NOT_EQUAL = "on a grid; surrogate gradient"
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    return network_step(job, SurrogateTimeStepped(job.t_end, job.dt))
