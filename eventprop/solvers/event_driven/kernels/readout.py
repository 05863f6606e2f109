"""Readouts: neurons without threshold, reduced over time in closed form.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import LIF, decay, flow, integral, integrated_psp, peak_time, slope

from ...compilation.jit import arrays, is_finite, jit, threads
from ...tape import Maximum, check_finite
from .common import TINY, arrivals_before, at_rest, begin_with, last_together


def maximum(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Maximum:
    """The maximum over time of the potential of neurons that do not spike, in closed form."""
    best = weight_t.new_zeros((len(time), weight_t.shape[1]))
    return maximum_between(time, index, weight_t, best, *at_rest(len(time), t_end), neuron, t_end)[0]


def maximum_between(
    time: Tensor, index: Tensor, weight_t: Tensor, best: Tensor, state: Tensor, stop: Tensor, neuron: LIF, t_end: float
) -> tuple[Maximum, Tensor]:
    """The same for neurons that begin with V and I of ``state`` [2, B, N], up to ``stop`` [B], where it is higher than the
    ``best`` [B, N] so far; and their state then, as for ``forward_between``. What has an end before ``t_end`` ends at an
    arrival."""
    shape, end = best.shape, torch.zeros_like(state)
    result = Maximum(
        value=best.clone(memory_format=torch.contiguous_format),
        time=torch.full(shape, -math.inf, dtype=weight_t.dtype),
        after=torch.full(shape, -1),
        arrival=torch.full(shape, -1),
        slope=torch.zeros(shape, dtype=weight_t.dtype),
    )
    with threads():
        finite = find_maximum_batch(
            *arrays(time, index, weight_t),
            *arrays(*result),
            *arrays(stop, state, end),
            neuron.tau_mem,
            neuron.tau_syn,
            t_end,
        )
    check_finite(bool(finite.all()))
    return result, end


def average(time: Tensor, index: Tensor, before: Tensor, neuron: LIF, t_end: float) -> Tensor:
    """[B, M] time average over [0, t_end] of the potential that each of M inputs raises through a weight of 1, added to what
    came ``before`` [B, M]."""
    received = before.clone(memory_format=torch.contiguous_format)
    with threads():
        average_batch(*arrays(time, index, received), neuron.tau_mem, neuron.tau_syn, t_end)
    return received


def average_adjoint(time: Tensor, index: Tensor, grad: Tensor, neuron: LIF, t_end: float) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [B, M], the gradient of what ``average`` returns."""
    grad_time = torch.zeros_like(time)
    with threads():
        average_adjoint_batch(*arrays(time, index, grad, grad_time), neuron.tau_mem, neuron.tau_syn, t_end)
    return grad_time


@jit(parallel=True)
def average_batch(time, index, received, tau_mem, tau_syn, t_end):
    """Add to ``received`` [B, M] the time average over [0, t_end] of the PSPs of each input, for weight 1."""
    for b in numba.prange(len(time)):
        average_psp(time[b], index[b], received[b], tau_mem, tau_syn, t_end)


@jit
def average_psp(time, index, received, tau_mem, tau_syn, t_end):
    early, arrivals = arrivals_before(time, 0.0), arrivals_before(time, t_end)
    area = np.empty(arrivals)
    for e in range(early):
        _, i, v = decay(-np.float64(time[e]), tau_mem, tau_syn)  # what remains at 0 of an arrival before
        area[e] = integral(v, i, t_end, decay(t_end, tau_mem, tau_syn)[2], tau_mem, tau_syn) / t_end
    for e in range(early, arrivals):  # apart from the sums below, so that it is vectorized
        left = t_end - np.float64(time[e])
        area[e] = integrated_psp(left, decay(left, tau_mem, tau_syn)[2], tau_mem, tau_syn) / t_end
    for e in range(arrivals):
        received[index[e]] += area[e]


@jit(parallel=True)
def average_adjoint_batch(time, index, grad, grad_time, tau_mem, tau_syn, t_end):
    """dL/dtime [B, K] from ``grad`` [B, M] = dL/dreceived: the derivative of an integral of V moved by dt is the difference of
    V at its ends, phi and, for an arrival before 0, phi again."""
    for b in numba.prange(len(time)):
        average_psp_adjoint(time[b], index[b], grad[b], grad_time[b], tau_mem, tau_syn, t_end)


@jit
def average_psp_adjoint(time, index, grad, grad_time, tau_mem, tau_syn, t_end):
    early, arrivals = arrivals_before(time, 0.0), arrivals_before(time, t_end)
    for e in range(arrivals):
        grad_time[e] = -decay(t_end - np.float64(time[e]), tau_mem, tau_syn)[2] / t_end
    for e in range(early):
        grad_time[e] += decay(-np.float64(time[e]), tau_mem, tau_syn)[2] / t_end
    for e in range(arrivals):
        grad_time[e] *= grad[index[e]]


@jit
def find_maximum(
    time, index, weight_t, best, best_time, best_after, best_arrival, best_slope, stop, state, end, tau_mem, tau_syn, t_end
):  # fmt: skip
    """One sample: the maximum of each potential without threshold in [0, stop]; see ``Maximum``, and ``simulate`` for the
    states. True if all is finite."""
    width = weight_t.shape[1]
    v, i = np.zeros(width), np.zeros(width)
    begin_with(state, v, i)
    time = time[: arrivals_before(time, stop)]
    e = 0
    while e < len(time):
        now = np.float64(time[e])
        e = last_together(i, time, index, weight_t, e)
        i += weight_t[index[e]]
        e += 1
        until = np.float64(time[e]) if e < len(time) else stop
        if now < 0.0:  # what comes before 0 acts, and is not measured
            a, s, phi = decay(min(until, 0.0) - now, tau_mem, tau_syn)
            for n in range(width):
                v[n], i[n] = flow(v[n], i[n], a, s, phi)
                if until >= 0.0 and v[n] > best[n]:
                    best[n], best_time[n], best_after[n] = v[n], 0.0, e - 1
            now = 0.0
        if until < now:
            continue
        horizon = until - now
        a, s, phi = decay(horizon, tau_mem, tau_syn)
        vanished = a + phi < TINY
        for n in range(width):
            i_n = i[n]
            v_end, i_end = flow(v[n], i_n, a, s, phi)
            if i_n > v[n] and i_n > best[n]:
                dt = peak_time(v[n], i_n, tau_mem, tau_syn) if i_end < v_end or vanished else np.inf
                if dt < horizon:
                    a_n, s_n, phi_n = decay(dt, tau_mem, tau_syn)
                    peak = flow(v[n], i_n, a_n, s_n, phi_n)[0]
                    if peak > best[n]:
                        best[n], best_time[n], best_after[n] = peak, now + dt, e - 1
                        best_arrival[n], best_slope[n] = -1, 0.0
                elif v_end > best[n]:  # V still rises when the next arrival, or the end of the window, comes
                    best[n], best_time[n], best_after[n] = v_end, until, e - 1
                    best_arrival[n] = e if until < t_end else -1
                    best_slope[n] = slope(i_end, v_end, tau_mem)
            v[n], i[n] = v_end, i_end
    if end.shape[1]:
        end[0, 0], end[1, 0] = v, i
    return is_finite(v) and is_finite(i)


@jit(parallel=True)
def find_maximum_batch(
    time, index, weight_t, best, best_time, best_after, best_arrival, best_slope, stop, state, end, tau_mem, tau_syn, t_end
):  # fmt: skip
    finite = np.zeros(len(time), np.bool_)
    for b in numba.prange(len(time)):
        finite[b] = find_maximum(
            time[b], index[b], weight_t, best[b], best_time[b], best_after[b], best_arrival[b], best_slope[b],
            stop[b], state[:, b : b + 1], end[:, b : b + 1], tau_mem, tau_syn, t_end,
        )  # fmt: skip
    return finite
