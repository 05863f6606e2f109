"""The state of single neurons over time, forwards (V, I) and backwards (p, q), as sums over events: for figures and checks.

What the event-driven solver walks through, seen at any times. Shapes: T times, N neurons of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eventprop.core.neuron import LIF, decay, remaining_reset, spike_jump
from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingLinear
from eventprop.solvers.support import Kind


def potential_trace(
    layer: SpikingLinear, arrivals: Spikes, emitted: Spikes, times: Tensor, sample: int = 0
) -> tuple[Tensor, Tensor]:
    """[T, N] potential V and current I of one sample at ``times`` [T] in ms, float64; eqs. (1)-(5) and (14). At an arrival I
    has jumped, at an own spike V not yet.

    Args:
        layer: of ``LIF`` neurons.
        arrivals, emitted: what the layer received, and what it made of it.
    """
    neuron = _neuron(layer)
    at, index = _events(arrivals, sample)
    s, psp = _since(times, at, neuron)
    weight = arrivals.scaled(layer.weight).detach().double().t()[index]  # [K, N]
    v, i = psp @ weight, s @ weight
    own, source = _events(emitted, sample)
    since = times.double()[:, None] - own[None, :]
    lowered = torch.where(since > 0, remaining_reset(since.clamp(min=0.0), neuron.v_th, neuron.tau_mem), 0.0)
    return v - lowered @ torch.nn.functional.one_hot(source, layer.out_features).double(), i


def adjoint_trace(
    layer: SpikingLinear, emitted: Spikes, grad: Tensor, times: Tensor, sample: int = 0
) -> tuple[Tensor, Tensor]:
    """[T, N] p = dL/dV and q = dL/dI of one sample at ``times`` [T] in ms, float64; eqs. (8) and (9). At an own spike p has not
    jumped yet, seen from later times.

    Args:
        layer: of ``LIF`` neurons.
        emitted: its spikes.
        grad: dL/d(emitted time), of the shape of ``emitted.time``: what ``emitted.time.retain_grad()`` keeps.
    """
    neuron = _neuron(layer)
    own, source = _events(emitted, sample)
    if emitted.slope is None or grad.shape != emitted.time.shape:
        raise ValueError(
            f"emitted must be the output of a layer and grad of its shape {list(emitted.time.shape)}, got {list(grad.shape)}"
        )
    fired = emitted.index[sample] >= 0
    slope, upstream = emitted.slope[sample][fired].detach().double(), grad[sample][fired].detach().double()
    jump = torch.zeros_like(own)
    for k in range(len(own) - 1, -1, -1):
        later = (source == source[k]) & (torch.arange(len(own)) > k)
        a, _, _ = decay(own[later] - own[k], neuron.tau_mem, neuron.tau_syn)
        jump[k] = spike_jump((jump[later] * a).sum(), upstream[k], slope[k], neuron.v_th, neuron.tau_mem)
    until = own[None, :] - times.double()[:, None]
    a, _, psp = decay(until.clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
    jumps = jump[:, None] * torch.nn.functional.one_hot(source, layer.out_features)
    before = until > 0
    return (a * before) @ jumps, (psp * before) @ jumps


def _neuron(layer: SpikingLinear) -> LIF:
    if not isinstance(layer, SpikingLinear) or layer.problem.kind() != Kind():  # no feedback, no delays
        raise TypeError(f"layer must be a SpikingLinear of LIF neurons, got {layer}")
    assert isinstance(layer.neuron, LIF)
    return layer.neuron


def _events(spikes: Spikes, sample: int) -> tuple[Tensor, Tensor]:
    """Times, float64, and neurons of the spikes of one sample."""
    fired = spikes.index[sample] >= 0
    return spikes.time[sample][fired].detach().double(), spikes.index[sample][fired].long()


def _since(times: Tensor, events: Tensor, neuron: LIF) -> tuple[Tensor, Tensor]:
    """[T, K] s and phi of eq. (5) from each event to each time; 0 where the event is still to come."""
    since = times.double()[:, None] - events[None, :]
    begun = since >= 0
    _, s, psp = decay(since.clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
    return s * begun, psp * begun
