"""The event-driven solver in plain torch: the reference for the numba kernels, and the solver on other devices.

The same functions as in ``kernels``, with the same arguments and results. All samples and neurons advance together
from arrival to arrival.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.neuron import (
    LIF,
    adjoint_flow,
    arrival_time_gradient,
    crossing_slope,
    decay,
    flow,
    integral,
    peak_time,
    slope,
    spike_jump,
)
from eventprop.core.spikes import padded_rows
from eventprop.core.window import Window

from ..crossing_reference import next_crossing
from ..emission_reference import Emission
from ..tape import Maximum, Tape, check_finite


def input_major(weight: Tensor) -> Tensor:
    """``weight`` [N, M] as [M, N], contiguous."""
    return weight.t().contiguous()


def forward(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Tape:
    """Emitted spikes of a layer at rest that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N]."""
    v, i = _rest(time, weight_t)
    emitted = Emission(len(time), time.new_empty(0))
    for e, now, until in _stretches(time, t_end):
        i = i + _arriving(weight_t, index[:, e])  # eq. (4)
        horizon = until.double() - now.double()
        since = torch.zeros_like(v, dtype=torch.float64)  # the begin of the stretch, for each neuron
        v, i = v.double(), i.double()
        while True:
            dt, crossing = next_crossing(v, i, horizon - since, *neuron.numbers)
            if not crossing.any():
                break
            a, s, phi = decay(torch.where(crossing, dt, 0.0), neuron.tau_mem, neuron.tau_syn)
            i = s * i
            v = torch.where(crossing, 0.0, v)  # eq. (3)
            since = torch.where(crossing, torch.minimum(since + dt, horizon), since)
            sample, n = crossing.nonzero(as_tuple=True)
            at = torch.minimum((now + since)[sample, n].to(time), until[sample, 0])
            rise = crossing_slope(i[sample, n], neuron.v_th, neuron.tau_mem)
            emitted.add(sample, n, at, rise.to(time), torch.full_like(n, e))
        a, s, phi = decay(horizon - since, neuron.tau_mem, neuron.tau_syn)
        v, i = (x.to(weight_t) for x in flow(v, i, a, s, phi))
    check_finite(bool(torch.isfinite(v).all() and torch.isfinite(i).all()))
    return emitted.tape()


def maximum(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Maximum:
    """The maximum over time of the potential of neurons that do not spike, in closed form."""
    v, i = _rest(time, weight_t.double())
    best, best_time = torch.zeros_like(v), torch.full_like(v, -math.inf)
    after = torch.full_like(v, -1, dtype=torch.int64)
    arrival, best_slope = after.clone(), torch.zeros_like(v)
    for e, now, until in _stretches(time, t_end):
        i = i + _arriving(weight_t, index[:, e])  # eq. (4)
        now, until = now.double(), until.double()
        # what comes before 0 acts, and is not measured
        begin, end = now.clamp(min=0.0), until.clamp(min=0.0)
        v, i = flow(v, i, *decay((until.clamp(max=0.0) - now).clamp(min=0.0), neuron.tau_mem, neuron.tau_syn))
        at_begin = (now < 0.0) & (until >= 0.0) & (v > best)
        best, best_time = torch.where(at_begin, v, best), torch.where(at_begin, 0.0, best_time)
        after = torch.where(at_begin, e, after)
        v_end, i_end = flow(v, i, *decay(end - begin, neuron.tau_mem, neuron.tau_syn))
        rising = (i > v) & (i > best) & (end > begin)
        dt = peak_time(torch.where(rising, v, 0.0), torch.where(rising, i, 1.0), neuron.tau_mem, neuron.tau_syn)
        inside = rising & (dt < end - begin)
        a, s, phi = decay(torch.where(inside, dt, 0.0), neuron.tau_mem, neuron.tau_syn)
        at_peak = inside & (flow(v, i, a, s, phi)[0] > best)
        at_end = rising & ~inside & (v_end > best)
        peak = torch.where(at_peak, flow(v, i, a, s, phi)[0], v_end)
        higher = at_peak | at_end
        best = torch.where(higher, peak, best)
        best_time = torch.where(higher, torch.where(at_peak, begin + dt, until), best_time)
        after = torch.where(higher, e, after)
        following = torch.where(until < t_end, e + 1, -1)
        arrival = torch.where(at_end, following, torch.where(at_peak, -1, arrival))
        best_slope = torch.where(at_end, slope(i_end, v_end, neuron.tau_mem), torch.where(at_peak, 0.0, best_slope))
        v, i = v_end, i_end
    check_finite(bool(torch.isfinite(v).all() and torch.isfinite(i).all()))
    return Maximum(best.to(weight_t), best_time.to(weight_t), after, arrival, best_slope.to(weight_t))


def average(time: Tensor, index: Tensor, before: Tensor, neuron: LIF, t_end: float) -> Tensor:
    """[B, M] time average over [0, t_end] of the potential that each of M inputs raises through a weight of 1, added to what
    came ``before`` [B, M]."""
    tau_mem, tau_syn = neuron.tau_mem, neuron.tau_syn
    _, i, v = decay((-time).clamp(min=0.0), tau_mem, tau_syn)  # what remains at 0 of an arrival before
    left = t_end - time.clamp(0.0, t_end)
    share = integral(v, i, left, decay(left, tau_mem, tau_syn)[2], tau_mem, tau_syn) / t_end
    source = index % (before.shape[1] + 1)  # padding (-1) becomes one input more
    return F.pad(before, (0, 1)).scatter_add(1, source, share)[:, :-1].contiguous()


def average_adjoint(time: Tensor, index: Tensor, grad: Tensor, neuron: LIF, t_end: float) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [B, M], the gradient of what ``average`` returns."""
    at_begin, at_end = (
        decay(since.clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)[2] for since in (-time, t_end - time)
    )
    return torch.where(index >= 0, grad.gather(1, index.clamp(min=0)) * (at_begin - at_end) / t_end, 0.0)


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, tape: Tape, grad: Tensor, neuron: LIF, v_reset: float, t_end: float,
    need_time: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight [N, M] from ``grad`` [B, S] = dL/d(emitted time); empty where not needed.

    ``v_reset`` is by how much a spike lowers V: v_th, or 0 for mere observations of V.
    """
    weight_t = weight.t()
    p, q = _rest(time, weight_t)
    grad_weight = torch.zeros_like(weight_t if need_weight else weight_t[:0])
    grad_time = torch.zeros_like(time if need_time else time[:, :0])
    samples = torch.arange(len(time), device=time.device)
    cursor = (tape.neuron >= 0).sum(1) - 1  # the last spike of each sample that is not yet walked over
    for e, now, until in reversed(list(_stretches(time, t_end))):
        at = until.expand_as(p)  # the time that p and q of each neuron refer to
        while len(samples) and tape.time.shape[1]:
            spike = cursor.clamp(min=0)
            mine = (cursor >= 0) & (tape.after[samples, spike] == e)
            if not mine.any():
                break
            sample, k = samples[mine], spike[mine]
            n, t = tape.neuron[sample, k], tape.time[sample, k]
            a, s, phi = decay((at[sample, n] - t).clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
            p_k, q_k = adjoint_flow(p[sample, n], q[sample, n], a, s, phi)
            p_k = p_k + spike_jump(p_k, grad[sample, k], tape.slope[sample, k], v_reset, neuron.tau_mem)
            p, q = p.index_put((sample, n), p_k), q.index_put((sample, n), q_k)
            at = at.index_put((sample, n), t)
            cursor = cursor - mine.long()
        a, s, phi = decay((at - now).clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
        p, q = adjoint_flow(p, q, a, s, phi)
        real = index[:, e] >= 0
        source = index[real, e]
        if need_weight:
            grad_weight.index_add_(0, source, q[real])
        if need_time:
            share = arrival_time_gradient(p[real], q[real], weight_t[source], neuron.tau_mem, neuron.tau_syn)
            grad_time[real, e] = share.sum(1)
    return grad_time, grad_weight.t().contiguous()


def _rest(time: Tensor, weight_t: Tensor) -> tuple[Tensor, Tensor]:
    state = weight_t.new_zeros((len(time), weight_t.shape[1]))
    return state, state


def _stretches(time: Tensor, t_end: float):
    """Arrival e, the time [B, 1] when it comes and the time when the stretch after it ends; in the order of e.

    Of simultaneous arrivals all but the last are followed by a stretch of length 0.
    """
    time = time.clamp(max=t_end)
    for e in range(time.shape[1]):
        until = time[:, e + 1 : e + 2] if e + 1 < time.shape[1] else torch.full_like(time[:, :1], t_end)
        yield e, time[:, e : e + 1], until


def _arriving(weight_t: Tensor, source: Tensor) -> Tensor:
    return torch.where((source >= 0)[:, None], weight_t[source.clamp(min=0)], 0.0)


def unfold(time: Tensor, index: Tensor, window: Window) -> tuple[Tensor, ...]:
    """[B P, L] times of the arrivals ``time``, ``index`` [B, K] that each position sees, the synapses through which it does,
    and the columns of the arrivals; padded with +inf and -1."""
    (height, width), (kernel_h, kernel_w) = window.out, window.kernel_size
    offset = torch.arange(kernel_h * kernel_w, device=index.device)
    k_y, k_x = offset // kernel_w, offset % kernel_w
    area = window.image[0] * window.image[1]
    arrival = index[:, :, None]
    y = arrival // window.image[1] % window.image[0] + window.padding[0] - k_y
    x = arrival % window.image[1] + window.padding[1] - k_x
    row, column = y // window.stride[0], x // window.stride[1]
    seen = (arrival >= 0) & (y % window.stride[0] == 0) & (x % window.stride[1] == 0)
    seen &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
    sample, e, o = seen.nonzero(as_tuple=True)
    position = (sample * height + row[sample, e, o]) * width + column[sample, e, o]
    position, order = position.sort(stable=True)
    sample, e, o = sample[order], e[order], o[order]
    synapse = index[sample, e] // area * len(offset) + o
    values = ((time[sample, e], math.inf), (synapse, -1), (e, -1))
    return tuple(padded_rows(x, position, len(index) * height * width, fill) for x, fill in values)


def fold(time: Tensor, index: Tensor, slope: Tensor, positions: int) -> tuple[Tensor, ...]:
    """[B, S] times of the spikes ``time``, ``index``, ``slope`` [B P, s] of all positions of each sample, sorted, their
    neurons, their slopes, and their places in the row of all positions; padded with +inf and -1."""
    rows, columns = len(time) // positions, positions * time.shape[1]
    channel = index.unflatten(0, (rows, positions))
    position = torch.arange(positions, device=index.device)[:, None]
    neuron = (channel * positions + position).masked_fill(channel < 0, -1).reshape(rows, columns)
    at, source = time.reshape(rows, columns).sort(dim=1, stable=True)
    longest = int((neuron >= 0).sum(1).max()) if neuron.numel() else 0
    at, source = at[:, :longest], source[:, :longest]
    neuron, slope = neuron.gather(1, source), slope.reshape(rows, columns).gather(1, source)
    return at, neuron, slope, source.masked_fill(neuron < 0, -1)


def put_back(grad: Tensor, source: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, K] sums of the gradients ``grad`` of all that came from each of the K places of a sample, by ``source``."""
    source = source.reshape(shape[0], source.numel() // max(shape[0], 1)) % (
        shape[1] + 1
    )  # padding (-1) becomes one more place
    sums = grad.new_zeros(shape[0], shape[1] + 1)
    return sums.scatter_add(1, source, grad.reshape(source.shape))[:, :-1].contiguous()
