"""The potential of neurons without threshold as a sum over spikes, with gradients by autograd, of time constants too.

By eq. (5) a spike at t_k adds w phi(t - t_k) to V(t). So whatever is linear in V is a product of the weights with what each
input neuron contributes, [B, M].

Shapes: B samples, M inputs, N neurons, K arrivals, S times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eventprop.core.autograd import differentiable_decay
from eventprop.core.neuron import integral
from eventprop.core.spikes import Spikes


def at_times(arrivals: Spikes, weight: Tensor, tau_mem: Tensor, tau_syn: Tensor, times: Tensor) -> Tensor:
    """[B, S, N] V at ``times`` [S] in ms."""
    received = [arrivals.summed(psp((t - arrivals.time).clamp(min=0.0), tau_mem, tau_syn)) for t in times]
    return _product(torch.stack(received, dim=1), weight)


def mean(
    arrivals: Spikes, weight: Tensor, tau_mem: Tensor, tau_syn: Tensor, t_end: float, tau_weight: float = math.inf
) -> Tensor:
    """[B, N] the mean of V over [0, t_end], where a time t counts exp(-t/tau_weight).

    phi(u) exp(-u/tau_weight) is again a phi, up to a factor, with 1/tau_weight added to 1/tau_mem and 1/tau_syn; eq. (12)
    integrates it. Of an arrival before 0 it integrates what is left of it at 0.
    """
    membrane, synapse = (1.0 / (1.0 / tau + 1.0 / tau_weight) for tau in (tau_mem, tau_syn))
    early = arrivals.time < 0.0
    before = torch.where(early, -arrivals.time, 0.0)
    begin = torch.where(early, 0.0, arrivals.time.clamp(max=t_end))
    _, i, v = differentiable_decay(before, tau_mem, tau_syn)
    left = t_end - begin
    area = integral(v, i * membrane / tau_mem, left, psp(left, membrane, synapse), membrane, synapse)
    window = t_end if tau_weight == math.inf else -tau_weight * math.expm1(-t_end / tau_weight)
    return _product(arrivals.summed(torch.exp(-begin / tau_weight) / window * area), weight)


def at_own_times(arrivals: Spikes, weight: Tensor, tau_mem: Tensor, tau_syn: Tensor, times: Tensor) -> Tensor:
    """[B, N] V of each neuron at a time of its own, ``times`` [B, N]; in turns, for few neurons."""
    padded = torch.cat([weight, weight.new_zeros(len(weight), 1)], dim=1)  # the last for padding, whose index is -1
    index = arrivals.index.long()
    values = [
        (row[index] * psp((t[:, None] - arrivals.time).clamp(min=0.0), tau_mem, tau_syn)).sum(1)
        for row, t in zip(padded, times.unbind(1), strict=True)
    ]
    return torch.stack(values, dim=1)


def psp(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> Tensor:
    """phi of eq. (5)."""
    return differentiable_decay(dt, tau_mem, tau_syn)[2]


def _product(received: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):
        return received @ weight.t()
