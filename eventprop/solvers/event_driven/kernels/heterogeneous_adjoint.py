"""The backward pass of layers whose neurons differ, or receive their own spikes; see ``heterogeneous_forward``.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, E events of one sample.
"""

from __future__ import annotations

import math
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
    TAU_MEM,
    TAU_SYN,
    V_TH,
    Layer,
    empty_coefficients,
    fill,
    rates_of,
)


class Gradients(NamedTuple):
    """dL/d(time, weight_t, recurrent_t, neurons) where kernels add it up."""

    time: np.ndarray
    weight_t: np.ndarray
    recurrent_t: np.ndarray
    neurons: np.ndarray


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, tape: Tape, kept: Tensor,
    grad: Tensor, t_end: float, need_time: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight, recurrent, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory period is not
    computed, and 0, and that of the times only if needed, else empty."""
    arrivals, layer = Arrivals(*arrays(time, index)), Layer.of(weight, recurrent, delay, neurons, kept.shape[2] > 0)
    chunks = min(max(1, backward_tasks(len(time))), max(1, len(time)))
    shares = [np.zeros((chunks, *x.shape), arrivals.time.dtype) for x in (layer.weight_t, layer.recurrent_t)]
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    gradients = Gradients(by_time, shares[0], shares[1], np.zeros((chunks, *neurons.shape)))
    with threads():
        adjoint_batch(arrivals, layer, Columns(*arrays(*tape)), *arrays(kept, grad), t_end, gradients)
        by_weight, by_recurrent = map(weight_gradient, shares)
    by_neurons = torch.from_numpy(gradients.neurons.sum(0)).to(neurons.dtype)
    return torch.from_numpy(gradients.time), by_weight, by_recurrent, by_neurons


@jit
def merged(time, tape, spikes, delay, recurrent, t_end):
    """The events of a sample in the order in which ``simulate`` has met them: when, and the arrival, or -1 - k for the own
    spike k."""
    time = time[: arrivals_before(time, t_end)]
    when, source = np.empty(len(time) + spikes), np.empty(len(time) + spikes, np.int64)
    now = min(0.0, np.float64(time[0])) if len(time) else 0.0
    e = delivered = events = 0
    while True:
        arrives = np.float64(time[e]) if e < len(time) else np.inf
        comes_back = np.inf
        if recurrent and delivered < spikes:
            comes_back = max(now, np.float64(tape.time[delivered]) + delay)
        now = min(arrives, comes_back)
        if now >= t_end:
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
def adjoint_sample(time, index, layer, tape, kept, grad, t_end, grad_time, grad_weight, grad_recurrent, grad_neurons):
    """Walk one sample backwards, as ``adjoint.adjoint_sample``. The hold of V after a spike ends p, at its release, and so is
    a jump of p to 0 there."""
    weight_t, recurrent_t, delay, neurons, alike, _ = layer
    tau_mem, tau_syn, v_th, refractory = neurons[TAU_MEM], neurons[TAU_SYN], neurons[V_TH], neurons[REFRACTORY]
    real, width = weight_t.dtype.type, len(tau_mem)
    spikes = np.searchsorted(tape.time, np.inf)
    if spikes == 0:
        return
    when, source = merged(time, tape, spikes, delay, len(recurrent_t) > 0, t_end)
    start = min(0.0, np.float64(time[0])) if len(time) else 0.0
    by_time, by_release = grad[:spikes].astype(np.float64), np.zeros(spikes)
    until_held = np.empty(spikes)
    for k in range(spikes):
        until_held[k] = np.float64(tape.time[k]) + refractory[tape.neuron[k]]
    by_end = np.argsort(until_held, kind="mergesort")
    freed = last_freed(tape, refractory)
    r = spikes - 1
    while r >= 0 and until_held[by_end[r]] >= t_end:
        r -= 1
    p, q = np.zeros(width, weight_t.dtype), np.zeros(width, weight_t.dtype)
    p_at, at = np.zeros(width), np.full(width, np.inf)  # p beyond the last jump in this stretch, and its time
    jumped, jump, jump_at = np.empty(2 * spikes, np.int64), np.empty(2 * spikes), np.empty(2 * spikes)
    coefficients, rates = empty_coefficients(width, weight_t.dtype), rates_of(tau_mem, tau_syn)
    k = spikes - 1
    for stretch in range(len(when) - 1, -2, -1):
        begin = when[stretch] if stretch >= 0 else start
        end = when[stretch + 1] if stretch + 1 < len(when) else t_end
        jumps = 0
        while True:
            spike = k >= 0 and tape.after[k] == stretch
            freed_here = r >= 0 and refractory[tape.neuron[by_end[r]]] > 0.0 and until_held[by_end[r]] > begin
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
                lowered = 0.0 if refractory[n] > 0.0 else v_th[n]
                leap = spike_jump(p_t, by_time[k] + by_release[k], tape.slope[k], lowered, tau_mem[n])
                p_next = p_t + leap
                grad_neurons[n, V_TH] -= p_next
                since = t - max(freed[k], 0.0)
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
def last_freed(tape, refractory):
    """For each spike, since when V has been free of a hold; -inf if it never was held."""
    freed, last = np.full(len(tape.time), -np.inf), np.full(len(refractory), -np.inf)
    for k in range(len(tape.time)):
        n = tape.neuron[k]
        if n >= 0:
            freed[k] = last[n]
            if refractory[n] > 0.0:
                last[n] = np.float64(tape.time[k]) + refractory[n]
    return freed


@jit(parallel=True)
def adjoint_batch(arrivals, layer, tape, kept, grad, t_end, gradients):
    """The shares of the chunks of samples are the rows of the ``gradients``, but for the times."""
    batch, chunks = len(arrivals.time), len(gradients.weight_t)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], layer, row_of(tape, b, 0), kept[b], grad[b], t_end,
                gradients.time[b], gradients.weight_t[chunk], gradients.recurrent_t[chunk], gradients.neurons[chunk],
            )  # fmt: skip
