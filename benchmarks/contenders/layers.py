"""Layers of this package on sequences; with ``EventDriven``, but for those named after ``TimeStepped``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from eventprop import (
    LIF,
    DelayedSpikingLinear,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)

from . import SequenceJob

NOT_EQUAL = ""
PACKAGES = ("eventprop",)


def made(job: SequenceJob, variant: str) -> nn.Sequential:
    """The layer of the ``variant``, and the readout."""
    first, back, last = (torch.from_numpy(weight).t().contiguous() for weight in job.weights)
    (neurons, inputs), classes = first.shape, len(last)
    solver = TimeStepped(job.t_end, job.dt) if variant.startswith("TimeStepped") else EventDriven(job.t_end)
    neuron: LIF | LearnableLIF = LIF(job.tau_mem, job.tau_syn, job.v_th)
    if "LearnableLIF" in variant or "different" in variant:
        neuron = LearnableLIF(neurons, neuron)
    if "different" in variant:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for logarithm in (neuron.log_tau_mem, neuron.log_tau_syn):
                logarithm.add_(0.1 * torch.randn(neurons, generator=generator))
    recurrent, kind = "ecurrent" in variant, SpikingLinear
    options = {"neuron": neuron, "solver": solver}
    if recurrent:
        kind, options["delay"] = SpikingRecurrent, job.dt
    elif variant == "DelayedSpikingLinear":
        kind, options["mean_delay"] = DelayedSpikingLinear, 5.0
    layer = kind(inputs, neurons, **options)
    readout = LeakyReadout(neurons, classes, solver=solver, neuron=LIF(job.tau_mem, job.tau_syn, job.v_th))
    with torch.no_grad():
        layer.weight.copy_(first)
        readout.weight.copy_(last)
        if recurrent:
            layer.recurrent_weight.copy_(back)
    return nn.Sequential(layer, readout)


def sequence_step(job: SequenceJob, variant: str) -> Callable[[int], float]:
    network = made(job, variant)
    spikes = Spikes(torch.from_numpy(job.time), torch.from_numpy(job.index), len(job.weights[0]))
    labels = torch.from_numpy(job.labels[0])

    def step(k: int) -> float:
        network.zero_grad()
        loss = F.cross_entropy(network(spikes), labels)
        loss.backward()
        return loss.item()

    def hidden_spikes() -> float:
        """Of each neuron."""
        with torch.no_grad():
            return float(network[0](spikes).count().float().mean())

    step.hidden_spikes = hidden_spikes  # type: ignore[attr-defined]  # PEP 232
    return step
