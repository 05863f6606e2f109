"""This package, ``EventDriven``, from its own initial weights: more hidden spikes than training leaves."""

from __future__ import annotations

from collections.abc import Callable

import torch

from eventprop import LIF, EventDriven
from eventprop.losses import MeanVoltage
from eventprop.networks import fully_connected

from . import Job
from .event_driven import network_step

NOT_EQUAL = "begins with this package's initial weights, and so with more hidden spikes"
PACKAGES = ("eventprop",)


def training_step(job: Job) -> Callable[[int], float]:
    torch.manual_seed(job.seed)
    neuron, solver = LIF(job.tau_mem, job.tau_syn, job.v_th), EventDriven(job.t_end)
    fresh = fully_connected(job.inputs, job.classes, MeanVoltage(), neuron, solver, hidden=[job.hidden])
    return network_step(job, solver, [weight.detach().t().numpy() for weight in fresh.parameters()])
