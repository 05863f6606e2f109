"""This package, ``EventDriven``: exact gradients in continuous time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from eventprop import LIF, EventDriven
from eventprop.losses import MeanVoltage
from eventprop.networks import fully_connected
from eventprop.solver import Solver
from eventprop.spikes import Spikes
from eventprop.threads import threads_for_kernels

from . import Job

NOT_EQUAL = ""
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    step = network_step(job, EventDriven(job.t_end))

    def with_all_threads(k: int) -> float:  # as the training loop does
        with threads_for_kernels():
            return step(k)

    return with_all_threads


def network_step(job: Job, solver: Solver) -> Callable[[int], float]:
    torch.manual_seed(job.seed)
    loss = MeanVoltage()
    neuron = LIF(job.tau_mem, job.tau_syn, job.v_th)
    network = fully_connected(job.inputs, job.classes, loss, neuron, solver, hidden=[job.hidden])
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    batches = [Spikes.from_times(torch.from_numpy(times)) for times in job.times]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        value = loss(network(batches[k]), labels[k])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.item()

    return step
