"""snnTorch: ``Synaptic`` neurons, which have a synaptic current, stepped through time as in its tutorials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import Job

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
