"""Norse: ``LIF`` layers with a synaptic current and a ``LI`` readout, stepped through time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from . import Job

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
