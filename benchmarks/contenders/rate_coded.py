"""This package's baseline, rate-coded: ``LIF`` neurons without synaptic current."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from surrogate_baseline.layers import Linear
from surrogate_baseline.neurons import LIF

from . import Job

NOT_EQUAL = "surrogate gradient; spikes on the grid; no synaptic current; loss on spike counts"
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    torch.manual_seed(job.seed)
    tau = job.tau_mem / job.dt
    network = nn.Sequential(
        Linear(job.inputs, job.hidden, bias=False), LIF(tau), Linear(job.hidden, job.classes, bias=False), LIF(tau)
    )
    with torch.no_grad():  # a spike of one input counts 1/tau: without this, nothing spikes
        for module in (network[0], network[2]):
            module.weight *= tau
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    batches = [torch.from_numpy(job.raster(k)) for k in range(len(job.labels))]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        loss = F.cross_entropy(network(batches[k]).sum(0), labels[k])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
