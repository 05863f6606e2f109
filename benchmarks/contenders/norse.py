"""Norse: ``LIF`` layers with a synaptic current and a ``LI`` readout, stepped through time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from . import Job, SequenceJob

NOT_EQUAL = "surrogate gradient; forward Euler, spikes on the grid"
PACKAGES = ("norse",)


def training_step(job: Job) -> Callable[[int], float]:
    import norse.torch as snn

    rates = {"tau_mem_inv": torch.tensor(1e3 / job.tau_mem), "tau_syn_inv": torch.tensor(1e3 / job.tau_syn)}  # in 1/s
    neuron = snn.LIFParameters(**rates, v_th=torch.tensor(job.v_th))
    network = snn.SequentialState(
        nn.Linear(job.inputs, job.hidden, bias=False), snn.LIF(neuron, dt=1e-3 * job.dt),
        nn.Linear(job.hidden, job.classes, bias=False), snn.LI(snn.LIParameters(**rates), dt=1e-3 * job.dt),
    )  # fmt: skip
    for layer, weight in zip((network[0], network[2]), job.weights, strict=True):
        layer.weight.data = torch.from_numpy(weight).t().contiguous()
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    batches = [torch.from_numpy(job.raster(k)) for k in range(len(job.labels))]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        voltage, _ = network(batches[k])
        loss = F.cross_entropy(voltage.mean(0), labels[k])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def sequence_step(job: SequenceJob, variant: str) -> Callable[[int], float]:
    """The synapses of all steps at once, then cells step by step. ``LIF`` and ``LI``, which loop by themselves, index the
    input of each step, and the gradient of that takes a time that grows with the square of the steps: 7 times as long."""
    import norse.torch as snn

    rates = {"tau_mem_inv": torch.tensor(1e3 / job.tau_mem), "tau_syn_inv": torch.tensor(1e3 / job.tau_syn)}  # in 1/s
    parameters, dt = snn.LIFParameters(**rates, v_th=torch.tensor(job.v_th)), 1e-3 * job.dt
    first, back, last = (torch.from_numpy(weight).t().contiguous() for weight in job.weights)
    hidden, output = (nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (first, last))
    hidden.weight.data, output.weight.data = first, last
    cell, readout = snn.LIFCell(parameters, dt=dt), snn.LICell(snn.LIParameters(**rates), dt=dt)
    if variant == "recurrent":
        weights = {"input_weights": first, "recurrent_weights": back, "autapses": True}
        hidden, cell = nn.Identity(), snn.LIFRecurrentCell(*first.shape[::-1], parameters, dt=dt, **weights)
    network = nn.ModuleList([hidden, cell, output, readout])
    raster, labels = torch.from_numpy(job.raster()), torch.from_numpy(job.labels[0])

    def through(neurons: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        state, outputs = None, []
        for x in inputs.unbind():
            out, state = neurons(x, state)
            outputs.append(out)
        return torch.stack(outputs)

    def step(k: int) -> float:
        network.zero_grad()
        potential = through(readout, output(through(cell, hidden(raster))))
        loss = F.cross_entropy(potential.amax(0), labels)
        loss.backward()
        return loss.item()

    def hidden_spikes() -> float:
        with torch.no_grad():
            return float(through(cell, hidden(raster)).sum(0).mean())

    step.hidden_spikes = hidden_spikes  # type: ignore[attr-defined]  # PEP 232
    return step
