"""ExactSNN-nn: ``ExactEventLinear`` layers, which map first spikes to first spikes with exact gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from eventprop import LIF

from . import Job

NOT_EQUAL = "a neuron spikes at most once, after the window too; trained bias spikes at 0 ms; loss on first spikes"
PACKAGES = ("exact-snn-nn",)


def training_step(job: Job) -> Callable[[int], float]:
    from exact_snn import latency_cross_entropy
    from exact_snn.event import ExactEventLinear

    constants = {"tm": job.tau_mem, "ts": job.tau_syn, "theta": job.v_th, "t_max": job.t_end, "bias_val": 0.0}
    network = nn.Sequential(
        ExactEventLinear(job.inputs, job.hidden, **constants), ExactEventLinear(job.hidden, job.classes, **constants)
    )
    peak = job.v_th / LIF(job.tau_mem, job.tau_syn, job.v_th).minimum_weight  # its weights are peak potentials
    for layer, weight in zip(network, job.weights, strict=True):
        layer.weight.data[:, :-1] = peak * torch.from_numpy(weight).t()
    optimizer = torch.optim.Adam(network.parameters(), job.lr, fused=True)
    batches = [torch.from_numpy(times).t().contiguous() for times in job.times]
    labels = torch.from_numpy(job.labels)

    def step(k: int) -> float:
        loss = latency_cross_entropy(network(batches[k]), labels[k], job.t_end, beta=1 / job.tau_syn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
