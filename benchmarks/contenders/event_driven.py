"""This package, ``EventDriven``: exact gradients in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from eventprop import LIF, EventDriven
from eventprop.core.spikes import Spikes
from eventprop.losses import MeanVoltage
from eventprop.solvers.solver import Solver
from eventprop.training.networks import fully_connected

from . import Job

NOT_EQUAL = ""
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    return network_step(job, EventDriven(job.t_end))


def trained_adam(network: nn.Module, job: Job) -> torch.optim.Adam:
    """Adam in the state that training leaves it in."""
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    for parameter, (mean, square) in zip(network.parameters(), job.moments, strict=True):
        moments = {"exp_avg": torch.tensor(mean), "exp_avg_sq": torch.tensor(square)}
        optimizer.state[parameter] = {"step": torch.tensor(1e4), **moments}
    return optimizer


def network_step(job: Job, solver: Solver, weights: Sequence[np.ndarray] | None = None) -> Callable[[int], float]:
    loss = MeanVoltage()
    neuron = LIF(job.tau_mem, job.tau_syn, job.v_th)
    network = fully_connected(job.inputs, job.classes, loss, neuron, solver, hidden=[job.hidden])
    for parameter, weight in zip(network.parameters(), job.weights if weights is None else weights, strict=True):
        parameter.data.copy_(torch.from_numpy(weight).t())
    optimizer = trained_adam(network, job)
    batches = [Spikes.from_times(torch.from_numpy(times)) for times in job.times]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        value = loss(network(batches[k]), labels[k])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.item()

    def hidden_spikes() -> float:
        with torch.no_grad():
            return sum(float(network[0](batch).count().sum()) for batch in batches) / labels.numel()

    # type checkers do not know that functions may have attributes of their own (PEP 232)
    step.hidden_spikes = hidden_spikes  # type: ignore[attr-defined]
    return step
