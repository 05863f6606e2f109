"""The backward pass of layers whose neurons differ, or receive their own spikes; see ``heterogeneous_forward``.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, E events of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import adjoint_flow, arrival_time_gradient, decay, spike_jump

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, jit, threads
from ...emission import Columns, row_of
from ...tape import Tape
from .common import arrivals_before
from .heterogeneous import (
    BIAS,
    BY_TAU_MEM,
    BY_TAU_SYN,
    REFRACTORY,
    RELEASE,
    RELEASED_AFTER,
    TAU_MEM,
    TAU_SYN,
    V_TH,
    Layer,
    empty_coefficients,
    fill,
    rates_of,
)
from .span import STATE_I, STATE_I_SYN, STATE_U, STATE_U_MEM, STATE_U_SYN, Span, sample_of, whole


class Gradients(NamedTuple):
    """dL/d(time, weight_t, recurrent_t, neurons) where kernels add it up; and of what is carried over."""

    time: np.ndarray
    weight_t: np.ndarray
    recurrent_t: np.ndarray
    neurons: np.ndarray
    state: np.ndarray  # at first, that of the state at the end
    own: np.ndarray


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, tape: Tape, kept: Tensor,
    grad: Tensor, t_end: float, need_time: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight, recurrent, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory period is not
    computed, and 0, and that of the times only if needed, else empty."""
    span = whole(time, t_end)
    return adjoint_between(
        time, index, weight, recurrent, delay, neurons, tape, kept, grad, span, span[2], span[2], need_time
    )[:4]


def adjoint_between(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, tape: Tape, kept: Tensor,
    grad: Tensor, span: Sequence[Tensor], end: Tensor, grad_end: Tensor, need_time: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The same for a part of the window, the tensors of a ``Span``, from the state at its ``end`` and ``grad_end``, dL/d(that),
    both [6, B, N], or [6, 0, 0] if there is no state; and the gradients of the state at its begin, and of the times [B, R] of
    the spikes carried over."""
    arrivals, layer = Arrivals(*arrays(time, index)), Layer.of(weight, recurrent, delay, neurons, kept.shape[2] > 0)
    chunks = min(max(1, backward_tasks(len(time))), max(1, len(time)))
    shares = [np.zeros((chunks, *x.shape), arrivals.time.dtype) for x in (layer.weight_t, layer.recurrent_t)]
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    by_state, by_own = torch.zeros_like(grad_end), torch.zeros_like(span[3])
    by_state[:STATE_U_MEM] = grad_end[:STATE_U_MEM]
    gradients = Gradients(by_time, shares[0], shares[1], np.zeros((chunks, *neurons.shape)), *arrays(by_state, by_own))
    with threads():
        adjoint_batch(
            arrivals, layer, Columns(*arrays(*tape)), *arrays(kept, grad), Span(*arrays(*span)), *arrays(end), gradients
        )
        by_weight, by_recurrent = map(weight_gradient, shares)
    by_neurons = torch.from_numpy(gradients.neurons.sum(0)).to(neurons.dtype)
    return torch.from_numpy(gradients.time), by_weight, by_recurrent, by_neurons, by_state, by_own


@jit
def merged(time, tape, spikes, delay, recurrent, span):
    """The events of a sample in the order in which ``simulate`` has met them: when, and the arrival, or -1 - k for the own
    spike k."""
    time = time[: arrivals_before(time, span.stop)]
    when, source = np.empty(len(time) + spikes), np.empty(len(time) + spikes, np.int64)
    now, delivered = span.begin, span.delivered
    e = events = 0
    while True:
        arrives = np.float64(time[e]) if e < len(time) else np.inf
        comes_back = np.inf
        if recurrent and delivered < spikes:
            comes_back = max(now, np.float64(tape.time[delivered]) + delay)
        now = min(arrives, comes_back)
        if now >= span.stop:
            return when[:events], source[:events]
        when[events] = now
        if comes_back <= arrives:
            source[events] = -1 - delivered
            delivered += 1
        else:
            source[events] = e
            e += 1
        events += 1


@jit
def adjoint_sample(
    time, index, layer, tape, kept, grad, span, end_state, grad_time, grad_weight, grad_recurrent, grad_neurons, grad_state,
    grad_own,
):  # fmt: skip
    """Walk one sample backwards, as ``adjoint.adjoint_sample``. The hold of V after a spike ends p, at its release, and so is
    a jump of p to 0 there."""
    weight_t, recurrent_t, delay, neurons, alike, _ = layer
    tau_mem, tau_syn, v_th, refractory = neurons[TAU_MEM], neurons[TAU_SYN], neurons[V_TH], neurons[REFRACTORY]
    real, width = weight_t.dtype.type, len(tau_mem)
    spikes, t_end = np.searchsorted(tape.time, np.inf), span.stop
    if spikes == 0 and not grad_state.shape[1]:
        return
    when, source = merged(time, tape, spikes, delay, len(recurrent_t) > 0, span)
    by_time, by_release = grad[:spikes].astype(np.float64), np.zeros(spikes)
    until_held = np.empty(spikes)
    for k in range(spikes):
        until_held[k] = np.float64(tape.time[k]) + refractory[tape.neuron[k]]
    by_end = ends_of_holds(kept, until_held)
    freed, freed_at_end = last_freed(tape, refractory, span.begin)
    r = len(by_end) - 1
    p, q = np.zeros(width, weight_t.dtype), np.zeros(width, weight_t.dtype)
    p_at, at = np.zeros(width), np.full(width, np.inf)  # p beyond the last jump in this stretch, and its time
    jumped, jump, jump_at = np.empty(2 * spikes, np.int64), np.empty(2 * spikes), np.empty(2 * spikes)
    coefficients, rates = empty_coefficients(width, weight_t.dtype), rates_of(tau_mem, tau_syn)
    if grad_state.shape[1]:
        p[:], q[:] = grad_state[STATE_U, 0], grad_state[STATE_I, 0]
        by_end_state(grad_neurons, grad_state, end_state, freed_at_end, t_end, tau_mem)
    k = spikes - 1
    for stretch in range(len(when) - 1, -2, -1):
        begin = when[stretch] if stretch >= 0 else span.begin
        end = when[stretch + 1] if stretch + 1 < len(when) else t_end
        jumps = 0
        while True:
            spike = k >= 0 and tape.after[k] == stretch
            freed_here = r >= 0 and kept[by_end[r], RELEASED_AFTER] == stretch
            if not spike and not freed_here:
                break
            if freed_here and (not spike or until_held[by_end[r]] >= tape.time[k]):
                j = by_end[r]
                n, t = tape.neuron[j], until_held[j]
                p_t = p_before(p[n], p_at[n], at[n], end, t, tau_mem[n])
                by_release[j] = -p_t * kept[j, RELEASE]
                leap, p_next = -p_t, 0.0
                r -= 1
            else:
                n, t = tape.neuron[k], np.float64(tape.time[k])
                p_t = p_before(p[n], p_at[n], at[n], end, t, tau_mem[n])
                leap = spike_jump(p_t, by_time[k] + by_release[k], tape.slope[k], v_th[n], tau_mem[n])
                p_next = p_t + leap
                grad_neurons[n, V_TH] -= p_next
                since = t - freed[k]
                if since > 0.0:
                    grad_neurons[n, BIAS] += leap * (1.0 - math.exp(-since / tau_mem[n]))
                if kept.shape[1]:
                    grad_neurons[n, TAU_MEM] += leap * kept[k, BY_TAU_MEM]
                    grad_neurons[n, TAU_SYN] += leap * kept[k, BY_TAU_SYN]
                k -= 1
            jumped[jumps], jump[jumps], jump_at[jumps] = n, leap, t
            p_at[n], at[n] = p_next, t
            jumps += 1
        if alike:
            flow_back_alike(p, q, end - begin, tau_mem[0], tau_syn[0])
        else:
            fill(coefficients, end - begin, rates, neurons, False)
            flow_back(p, q, coefficients.a, coefficients.s, coefficients.phi)
        for j in range(jumps):  # the flow is linear: what each jump adds at the begin of the stretch
            n = jumped[j]
            p_j, q_j = adjoint_flow(jump[j], 0.0, *decay(jump_at[j] - begin, tau_mem[n], tau_syn[n]))
            p[n] += p_j
            q[n] += q_j
            at[n] = np.inf
        if stretch < 0:
            break
        e = source[stretch]
        row = weight_t[index[e]] if e >= 0 else recurrent_t[tape.neuron[-1 - e]]
        grad_row = grad_weight[index[e]] if e >= 0 else grad_recurrent[tape.neuron[-1 - e]]
        for n in range(width):
            grad_row[n] += q[n]
        if e >= 0 and len(grad_time) == 0:  # not needed
            continue
        total = real(0.0)
        for n in range(width):
            total += arrival_time_gradient(p[n], q[n], row[n], real(tau_mem[n]), real(tau_syn[n]))
        if e >= 0:
            grad_time[e] = total
        else:
            by_time[-1 - e] += total
    if grad_state.shape[1]:
        grad_state[STATE_U, 0], grad_state[STATE_I, 0] = p, q
    for k in range(len(grad_own)):
        if span.neuron[k] >= 0:
            grad_own[k] = by_time[k] + by_release[k]


@jit
def ends_of_holds(kept, until_held):
    """The spikes whose holds end, in the order in which they do. Where a hold ends as something arrives, the forward pass has
    decided what comes first."""
    if kept.shape[1] == 0:
        return np.empty(0, np.int64)
    spikes = np.flatnonzero(kept[: len(until_held), RELEASED_AFTER] < np.inf)
    spikes = spikes[np.argsort(until_held[spikes], kind="mergesort")]
    return spikes[np.argsort(kept[spikes, RELEASED_AFTER], kind="mergesort")]


@jit
def by_end_state(grad_neurons, grad_state, end_state, freed, t_end, tau_mem):
    """What parameters give to the loss by the state at the end, for fixed times of all events."""
    for n in range(len(freed)):
        p, q = grad_state[STATE_U, 0, n], grad_state[STATE_I, 0, n]
        grad_neurons[n, TAU_MEM] += p * end_state[STATE_U_MEM, 0, n]
        grad_neurons[n, TAU_SYN] += p * end_state[STATE_U_SYN, 0, n] + q * end_state[STATE_I_SYN, 0, n]
        if t_end > 0.0:  # U = V - b
            grad_neurons[n, BIAS] -= p * math.exp(-max(t_end - freed[n], 0.0) / tau_mem[n])


@jit
def flow_back(p, q, a, s, phi):
    for n in range(len(p)):
        p[n], q[n] = adjoint_flow(p[n], q[n], a[n], s[n], phi[n])


@jit
def flow_back_alike(p, q, length, tau_mem, tau_syn):
    real = p.dtype.type
    a, s, phi = decay(length, tau_mem, tau_syn)
    a, s, phi = real(a), real(s), real(phi)
    for n in range(len(p)):
        p[n], q[n] = adjoint_flow(p[n], q[n], a, s, phi)


@inlined
def p_before(p, p_at, at, end, t, tau_mem):
    """p of a neuron at the time ``t`` of a stretch: beyond its last jump there, or from the ``end`` of the stretch."""
    return p * exp(-(end - t) / tau_mem) if at == np.inf else p_at * exp(-(at - t) / tau_mem)


@jit
def last_freed(tape, refractory, begin):
    """For each spike, and for the end of each neuron, since when U depends on the bias: since the begin of that, at 0, or since
    the last hold of V. -inf where U is that at the ``begin``, which is given."""
    first = 0.0 if begin <= 0.0 else -np.inf
    freed, last = np.full(len(tape.time), first), np.full(len(refractory), first)
    for k in range(len(tape.time)):
        n = tape.neuron[k]
        if n >= 0:
            freed[k] = last[n]
            release = np.float64(tape.time[k]) + refractory[n]
            if refractory[n] > 0.0 and release >= begin:
                last[n] = max(release, first)
    return freed, last


@jit(parallel=True)
def adjoint_batch(arrivals, layer, tape, kept, grad, span, end, gradients):
    """The shares of the chunks of samples are the rows of the ``gradients``, but for the times."""
    batch, chunks = len(arrivals.time), len(gradients.weight_t)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], layer, row_of(tape, b, 0), kept[b], grad[b], sample_of(span, b),
                end[:, b : b + 1], gradients.time[b], gradients.weight_t[chunk], gradients.recurrent_t[chunk],
                gradients.neurons[chunk], gradients.state[:, b : b + 1], gradients.own[b],
            )  # fmt: skip
