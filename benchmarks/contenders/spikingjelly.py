"""SpikingJelly: ``LIFNode`` in multi-step mode, its torch backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from . import Job

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
