"""Initial weights for the packages that have the neurons of this one, so that their networks begin equally active."""

from __future__ import annotations

import numpy as np
import torch

from eventprop import LIF, EventDriven
from eventprop.losses import MeanVoltage
from eventprop.networks import fully_connected

from . import Job


def initial_weights(job: Job) -> list[np.ndarray]:
    """[inputs, hidden] and [hidden, classes] float32, as in ``event_driven``."""
    torch.manual_seed(job.seed)
    neuron = LIF(job.tau_mem, job.tau_syn, job.v_th)
    network = fully_connected(
        job.inputs, job.classes, MeanVoltage(), neuron, EventDriven(job.t_end), hidden=[job.hidden]
    )
    return [weight.detach().t().numpy() for weight in network.parameters()]
