"""SpikingJelly: ``LIFNode`` in multi-step mode, its torch backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import Job, SequenceJob

NOT_EQUAL = "surrogate gradient; spikes on the grid; no synaptic current; loss on spike counts"
PACKAGES = ("spikingjelly",)


def training_step(job: Job) -> Callable[[int], float]:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    torch.manual_seed(job.seed)

    def lif() -> nn.Module:
        return neuron.LIFNode(tau=job.tau_mem / job.dt, surrogate_function=surrogate.ATan(), step_mode="m")

    network = nn.Sequential(
        layer.Linear(job.inputs, job.hidden, bias=False, step_mode="m"), lif(),
        layer.Linear(job.hidden, job.classes, bias=False, step_mode="m"), lif(),
    )  # fmt: skip
    with torch.no_grad():  # a spike of one input counts 1/tau: without this, nothing spikes
        for module in (network[0], network[2]):
            module.weight *= job.tau_mem / job.dt
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    batches = [torch.from_numpy(job.raster(k)) for k in range(len(job.labels))]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        functional.reset_net(network)
        loss = F.cross_entropy(network(batches[k]).sum(0), labels[k])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def sequence_step(job: SequenceJob, variant: str) -> Callable[[int], float]:
    """``CUBALIFNode``, which has a synaptic current, and as readout ``LIFNode``, which has none, without threshold. The
    synapses of all steps at once, then neurons in single-step mode: in multi-step mode they index the input of each step, and
    the gradient of that takes a time that grows with the square of the steps: 6 times as long."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    decays = {"c_decay": float(np.exp(-job.dt / job.tau_syn)), "v_decay": float(np.exp(-job.dt / job.tau_mem))}
    # its potential grows by the whole current in each step
    first, back, last = (torch.from_numpy(weight).t().contiguous() for weight in job.weights)
    first, back, neurons = first * job.dt / job.tau_mem, back * job.dt / job.tau_mem, len(first)
    spiking = neuron.CUBALIFNode(**decays, v_threshold=job.v_th, surrogate_function=surrogate.ATan())
    if variant == "recurrent":
        spiking = layer.LinearRecurrentContainer(spiking, neurons, neurons, bias=False)
        spiking.rc.weight.data = torch.cat([torch.eye(neurons), back], dim=1)
    hidden, output = (nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (first, last))
    hidden.weight.data, output.weight.data = first, last
    readout = neuron.LIFNode(tau=job.tau_mem / job.dt, v_threshold=float("inf"))
    network = nn.ModuleList([hidden, spiking, output, readout])
    raster, labels = torch.from_numpy(job.raster()), torch.from_numpy(job.labels[0])

    def emitted() -> torch.Tensor:
        functional.reset_net(network)
        return torch.stack([spiking(current) for current in hidden(raster).unbind()])

    def step(k: int) -> float:
        network.zero_grad()
        potentials = []
        for current in output(emitted()).unbind():
            readout(current)
            potentials.append(readout.v)
        loss = F.cross_entropy(torch.stack(potentials).amax(0), labels)
        loss.backward()
        return loss.item()

    def hidden_spikes() -> float:
        with torch.no_grad():
            return float(emitted().sum(0).mean())

    step.hidden_spikes = hidden_spikes  # type: ignore[attr-defined]  # PEP 232
    return step
