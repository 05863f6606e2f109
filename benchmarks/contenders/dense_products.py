"""The bare dense products of a simulation in steps of ``job.dt``: what any dense simulator needs at least."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import Job

NOT_EQUAL = "the dense products alone: forward, weight gradients, the gradient between the layers"
PACKAGES = ("torch",)


def training_step(job: Job) -> Callable[[int], float]:
    rows = round(job.t_end / job.dt) * job.labels.shape[1]
    x, h, o = (torch.rand(rows, size) for size in (job.inputs, job.hidden, job.classes))
    first, second = torch.rand(job.hidden, job.inputs), torch.rand(job.classes, job.hidden)

    def step(k: int) -> float:
        for a, b in ((x, first.T), (h, second.T), (o.T, h), (o, second), (h.T, x)):
            a @ b
        return 0.0

    return step
