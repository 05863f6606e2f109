"""snnTorch: ``Synaptic`` neurons, which have a synaptic current, stepped through time as in its tutorials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import Job, SequenceJob

NOT_EQUAL = "surrogate gradient; spikes on the grid; reset one step late; loss on spike counts"
PACKAGES = ("snntorch",)


def training_step(job: Job) -> Callable[[int], float]:
    import snntorch

    torch.manual_seed(job.seed)
    alpha, beta = (float(np.exp(-job.dt / tau)) for tau in (job.tau_syn, job.tau_mem))
    layers = nn.ModuleList(
        [nn.Linear(job.inputs, job.hidden, bias=False), nn.Linear(job.hidden, job.classes, bias=False)]
    )
    neurons = [snntorch.Synaptic(alpha=alpha, beta=beta, threshold=job.v_th) for _ in layers]
    optimizer = torch.optim.Adam(layers.parameters(), job.lr, fused=True)
    batches = [torch.from_numpy(job.raster(k)) for k in range(len(job.labels))]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        states = [neuron.init_synaptic() for neuron in neurons]
        counts = torch.zeros(())
        for x in batches[k]:
            for n, (layer, neuron) in enumerate(zip(layers, neurons, strict=True)):
                x, *states[n] = neuron(layer(x), *states[n])
            counts = counts + x
        loss = F.cross_entropy(counts, labels[k])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def sequence_step(job: SequenceJob, variant: str) -> Callable[[int], float]:
    """The synapses of all steps at once, then the neurons step by step."""
    import snntorch

    alpha, beta = (float(np.exp(-job.dt / tau)) for tau in (job.tau_syn, job.tau_mem))
    # its potential grows by the whole current in each step
    first, back, last = (torch.from_numpy(weight).t().contiguous() * job.dt / job.tau_mem for weight in job.weights)
    hidden, output = (nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (first, last))
    hidden.weight.data, output.weight.data = first, last
    constants = {"alpha": alpha, "beta": beta, "threshold": job.v_th}
    if variant == "recurrent":
        neuron = snntorch.RSynaptic(linear_features=len(first), **constants)
        neuron.recurrent.weight.data, neuron.recurrent.bias = back, None
    else:
        neuron = snntorch.Synaptic(**constants)
    readout = snntorch.Synaptic(**constants, reset_mechanism="none")
    network = nn.ModuleList([hidden, neuron, output, readout])
    raster, labels = torch.from_numpy(job.raster()), torch.from_numpy(job.labels[0])

    def emitted() -> torch.Tensor:
        state = neuron.init_rsynaptic() if variant == "recurrent" else neuron.init_synaptic()
        spikes = []
        for current in hidden(raster):
            emitted, *rest = neuron(current, *state)
            state = (emitted, *rest) if variant == "recurrent" else rest
            spikes.append(emitted)
        return torch.stack(spikes)

    def step(k: int) -> float:
        network.zero_grad()
        state, potentials = readout.init_synaptic(), []
        for current in output(emitted()):
            _, *state = readout(current, *state)
            potentials.append(state[1])
        loss = F.cross_entropy(torch.stack(potentials).amax(0), labels)
        loss.backward()
        return loss.item()

    def hidden_spikes() -> float:
        with torch.no_grad():
            return float(emitted().sum(0).mean())

    step.hidden_spikes = hidden_spikes  # type: ignore[attr-defined]  # PEP 232
    return step
