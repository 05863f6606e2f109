"""Neurons with parameters of their own, and layers that receive their own spikes, in the same passes over all neurons as plain
layers.

A neuron with a constant current b, which begins at time 0, follows the flow of eq. (6) in U = V - b and crosses v_th - b. In
the refractory period after a spike V is held at 0. A recurrent spike arrives after a delay, and acts as any arrival does: the
events of a sample are its arrivals and, in a recurrent layer, its own spikes as they arrive.

For the gradients of time constants, the derivatives of V and I by them flow forwards beside V and I, at fixed times of all
events, and are kept at each spike. What a parameter gives to the loss by moving the spike k is the jump of p there, eq. (9),
times the derivative of V. So nothing but spikes is remembered.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, E events of one sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import (
    adjoint_flow,
    arrival_time_gradient,
    crossing_slope,
    decay,
    decay_by_tau,
    flow,
    least_after_crossing,
    short_parts,
    short_phi_by_rates,
    slope,
    spike_jump,
)

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, is_finite, jit, threads
from ...crossing import NEVER, next_crossing
from ...emission import Columns, record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import TINY, arrivals_before, input_major

# Of the longer time constant: no crossing comes later, since U is down to 1e-260 of what it was, and the sign of a smaller
# one means nothing.
REACH = 600.0
SHORT = 0.4  # of the sum of the rates: the length of the stretches for which ``short_parts`` holds
# rows of the parameters [5, N] of the neurons
TAU_MEM, TAU_SYN, V_TH, BIAS, REFRACTORY = range(5)
# what is kept of a spike: the derivatives of V by tau_mem and tau_syn, and the slope of V at the end of the hold after it
BY_TAU_MEM, BY_TAU_SYN, RELEASE = range(3)


class Layer(NamedTuple):
    """Its connections and neurons; one that is not recurrent has an empty ``recurrent_t``."""

    weight_t: np.ndarray  # [M, N]
    recurrent_t: np.ndarray  # [N, N] or [0, N]
    delay: float  # of recurrent spikes, in ms
    neurons: np.ndarray  # [5, N]
    alike: bool  # whether all neurons have the same time constants
    learns: bool  # whether gradients of time constants are wanted


class State(NamedTuple):
    """U, I, and their derivatives by the time constants; [N] each."""

    u: np.ndarray
    i: np.ndarray
    u_mem: np.ndarray
    u_syn: np.ndarray
    i_syn: np.ndarray


class Coefficients(NamedTuple):
    """Those of eq. (5), and their derivatives by the time constants, over one stretch; [N] each."""

    a: np.ndarray
    s: np.ndarray
    phi: np.ndarray
    a_mem: np.ndarray
    phi_mem: np.ndarray
    s_syn: np.ndarray
    phi_syn: np.ndarray


class Gradients(NamedTuple):
    """dL/d(time, weight_t, recurrent_t, neurons) where kernels add it up."""

    time: np.ndarray
    weight_t: np.ndarray
    recurrent_t: np.ndarray
    neurons: np.ndarray


def forward(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, t_end: float, learns: bool
) -> tuple[Tape, Tensor]:  # fmt: skip
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight`` [N, M] and its own
    spikes, ``delay`` ms later, through ``recurrent`` [N, N], or [N, 0] if it is not recurrent; ``neurons`` [N, 5]. And what is
    kept of each spike, [B, S, 3], or [B, S, 0] if there is nothing to keep."""
    arrivals, layer = Arrivals(*arrays(time, index)), _layer(weight, recurrent, delay, neurons, learns)
    keeps = 3 if learns or layer.neurons[REFRACTORY].any() else 0
    return recorded(
        lambda out, kept: simulate_batch(arrivals, layer, out, kept, t_end),
        len(time),
        len(neurons),
        arrivals.time.dtype,
        len(time),
        keeps,
    )


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, tape: Tape, kept: Tensor,
    grad: Tensor, t_end: float, need_time: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight, recurrent, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory period is not
    computed, and 0, and that of the times only if needed, else empty."""
    arrivals, layer = Arrivals(*arrays(time, index)), _layer(weight, recurrent, delay, neurons, kept.shape[2] > 0)
    chunks = min(max(1, backward_tasks(len(time))), max(1, len(time)))
    shares = [np.zeros((chunks, *x.shape), arrivals.time.dtype) for x in (layer.weight_t, layer.recurrent_t)]
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    gradients = Gradients(by_time, shares[0], shares[1], np.zeros((chunks, *neurons.shape)))
    with threads():
        adjoint_batch(arrivals, layer, Columns(*arrays(*tape)), *arrays(kept, grad), t_end, gradients)
        by_weight, by_recurrent = map(weight_gradient, shares)
    by_neurons = torch.from_numpy(gradients.neurons.sum(0)).to(neurons.dtype)
    return torch.from_numpy(gradients.time), by_weight, by_recurrent, by_neurons


def _layer(weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, learns: bool) -> Layer:
    parameters = neurons.detach().double().t().contiguous().numpy()
    alike = bool((parameters[:V_TH] == parameters[:V_TH, :1]).all())
    weight_t, recurrent_t = arrays(input_major(weight), input_major(recurrent))
    return Layer(weight_t, recurrent_t, delay, parameters, alike, learns)


@jit
def rates_of(tau_mem, tau_syn):
    """[N] of the membranes and of the synapses, and the sum of the fastest of both."""
    m, r = 1.0 / tau_mem, 1.0 / tau_syn
    return m, r, m.max() + r.max()


@jit
def fill(coefficients, length, rates, neurons, learns):
    """The ``coefficients`` of all neurons over a stretch of that ``length``. Each loop writes to one array or two: a loop that
    wrote to all would have to be checked for more overlaps than compilers do, and not become vector instructions."""
    tau_mem, tau_syn, (m, r, fastest) = neurons[TAU_MEM], neurons[TAU_SYN], rates
    a, s, phi, a_mem, phi_mem, s_syn, phi_syn = coefficients
    if length * fastest > SHORT:
        for n in range(len(a)):
            a[n], s[n], phi[n] = decay(length, tau_mem[n], tau_syn[n])
        if learns:
            for n in range(len(a)):
                a_mem[n], phi_mem[n], s_syn[n], phi_syn[n] = decay_by_tau(
                    length, a[n], s[n], phi[n], tau_mem[n], tau_syn[n]
                )
        return
    for n in range(len(a)):
        a[n], phi[n] = short_parts(length, m[n], r[n])
    for n in range(len(a)):
        s[n] = a[n] - 0.5 * length * (r[n] - m[n]) * phi[n]
    for n in range(len(a)):
        a[n] += 0.5 * length * (r[n] - m[n]) * phi[n]
    if learns:
        for n in range(len(a)):
            phi_mem[n], phi_syn[n] = short_phi_by_rates(length, phi[n], m[n], r[n])
        for n in range(len(a)):
            phi_mem[n] = -m[n] * m[n] * (length * phi[n] - m[n] * phi_mem[n])
        for n in range(len(a)):
            phi_syn[n] = r[n] * r[n] * m[n] * phi_syn[n]
        for n in range(len(a)):
            a_mem[n] = a[n] * length * m[n] * m[n]
        for n in range(len(a)):
            s_syn[n] = s[n] * length * r[n] * r[n]
    for n in range(len(a)):
        phi[n] *= length * m[n]


@inlined
def least_end(a, phi, threshold):
    """The least U with which a stretch can end after a crossing of the ``threshold``, eq. (15); a U that rises to a threshold
    below 0 stays above it. After a stretch so long that nothing is left to compare, all may have crossed."""
    lost = min(a + phi, (a + phi) * threshold) <= TINY
    return threshold if threshold <= 0.0 else (-np.inf if lost else least_after_crossing(a, phi, threshold))


@jit
def advance(state, row, end, can_cross, coefficients, threshold, learns):
    """An event at all neurons, their flow over the stretch after it, and which of them can cross the threshold in it."""
    u, i, u_mem, u_syn, i_syn = state
    u_end, i_end, u_mem_end, u_syn_end, i_syn_end = end
    a, s, phi, a_mem, phi_mem, s_syn, phi_syn = coefficients
    for n in range(len(u)):
        i[n] += row[n]
    for n in range(len(u)):
        u_end[n] = a[n] * u[n] + phi[n] * i[n]
    for n in range(len(u)):
        i_end[n] = s[n] * i[n]
    for n in range(len(u)):
        can_cross[n] = u_end[n] >= least_end(a[n], phi[n], threshold[n])
    if learns:
        for n in range(len(u)):
            u_mem_end[n] = a[n] * u_mem[n] + a_mem[n] * u[n] + phi_mem[n] * i[n]
        for n in range(len(u)):
            u_syn_end[n] = a[n] * u_syn[n] + phi_syn[n] * i[n] + phi[n] * i_syn[n]
        for n in range(len(u)):
            i_syn_end[n] = s[n] * i_syn[n] + s_syn[n] * i[n]


@jit
def advance_alike(state, row, end, can_cross, length, tau_mem, tau_syn, threshold, learns):
    """The same for neurons that have the same time constants."""
    u, i, u_mem, u_syn, i_syn = state
    u_end, i_end, u_mem_end, u_syn_end, i_syn_end = end
    a, s, phi = decay(length, tau_mem, tau_syn)
    for n in range(len(u)):
        i[n] += row[n]
    for n in range(len(u)):
        u_end[n], i_end[n] = flow(u[n], i[n], a, s, phi)
    for n in range(len(u)):
        can_cross[n] = u_end[n] >= least_end(a, phi, threshold[n])
    if learns:
        a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(length, a, s, phi, tau_mem, tau_syn)
        for n in range(len(u)):
            u_mem_end[n] = a * u_mem[n] + a_mem * u[n] + phi_mem * i[n]
        for n in range(len(u)):
            u_syn_end[n] = a * u_syn[n] + phi_syn * i[n] + phi * i_syn[n]
        for n in range(len(u)):
            i_syn_end[n] = s * i_syn[n] + s_syn * i[n]


class One(NamedTuple):
    """The state of one neuron."""

    u: float
    i: float
    u_mem: float
    u_syn: float
    i_syn: float


@inlined
def one_of(state, n):
    return One(state.u[n], state.i[n], state.u_mem[n], state.u_syn[n], state.i_syn[n])


@jit
def flow_one(one, length, tau_mem, tau_syn, learns):
    """Eq. (6) for one neuron, with its derivatives."""
    a, s, phi = decay(length, tau_mem, tau_syn)
    u, i = flow(one.u, one.i, a, s, phi)
    if not learns:
        return One(u, i, 0.0, 0.0, 0.0)
    a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(length, a, s, phi, tau_mem, tau_syn)
    return One(
        u, i, a * one.u_mem + a_mem * one.u + phi_mem * one.i,
        a * one.u_syn + phi_syn * one.i + phi * one.i_syn, s * one.i_syn + s_syn * one.i,
    )  # fmt: skip


@jit
def hold_one(one, length, bias, tau_syn):
    """One neuron after V was held at 0 for a time: only I flows, and V does not depend on anything."""
    s = exp(-length / tau_syn)
    return One(-bias, s * one.i, 0.0, 0.0, s * one.i_syn + one.i * s * length / (tau_syn * tau_syn))


@inlined
def put(state, n, one):
    state.u[n], state.i[n] = one.u, one.i
    state.u_mem[n], state.u_syn[n], state.i_syn[n] = one.u_mem, one.u_syn, one.i_syn


@jit
def empty_state(width):
    return State(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width))


@jit
def empty_coefficients(width, real):
    return Coefficients(
        np.empty(width, real), np.empty(width, real), np.empty(width, real), np.empty(width, real), np.empty(width, real),
        np.empty(width, real), np.empty(width, real),
    )  # fmt: skip


@jit
def simulate(time, index, layer, out, kept, t_end):
    """One sample, as ``forward.simulate``. It stops at a spike that does not fit, which would have acted on the others."""
    weight_t, recurrent_t, delay, neurons, alike, learns = layer
    tau_mem, tau_syn = neurons[TAU_MEM], neurons[TAU_SYN]
    v_th, bias, refractory = neurons[V_TH], neurons[BIAS], neurons[REFRACTORY]
    real, room = out.time.dtype.type, min(len(out.time), MAX_SPIKES_PER_SAMPLE)
    width, recurrent = len(tau_mem), len(recurrent_t) > 0
    state, end, coefficients = empty_state(width), empty_state(width), empty_coefficients(width, np.float64)
    threshold, no_bias = v_th.copy(), np.zeros(width)  # the bias is still to begin
    no_event, rates = np.zeros(width, weight_t.dtype), rates_of(tau_mem, tau_syn)
    can_cross = np.zeros(-(-width // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    candidate = np.zeros(len(can_cross) + 1, np.int64)
    first = np.empty(len(can_cross))  # of each candidate, the time from the begin of the stretch to its first crossing
    held, release, last = np.empty(width, np.int64), np.full(width, -np.inf), np.full(width, -1)  # neurons in a hold
    holds = 0
    keeps = kept.shape[1] > 0
    # what to keep of the spikes of a stretch, not yet sorted, and where those of a neuron begin
    fresh, place = np.empty((64, 3)), np.empty(width, np.int64)
    time = time[: arrivals_before(time, t_end)]
    now = min(0.0, np.float64(time[0])) if len(time) else 0.0
    begun = False
    row = no_event
    spikes = e = delivered = events = 0
    while now < t_end:
        if now >= 0.0 and not begun:
            begun = True
            for n in range(width):
                state.u[n] -= bias[n]
                threshold[n] -= bias[n]
        current = bias if begun else no_bias
        until = np.float64(time[e]) if e < len(time) else t_end
        if not begun:
            until = min(until, 0.0)
        if recurrent and delivered < spikes:
            until = min(until, max(now, np.float64(out.time[delivered]) + delay))
        horizon = until - now
        if alike:
            advance_alike(state, row, end, can_cross, horizon, tau_mem[0], tau_syn[0], threshold, learns)
        else:
            fill(coefficients, horizon, rates, neurons, learns)
            advance(state, row, end, can_cross, coefficients, threshold, learns)
        for h in range(holds):
            can_cross[held[h]] = release[held[h]] < until
        candidates = 0
        for eight in range(len(can_cross_by_eight)):
            if can_cross_by_eight[eight] != 0:
                for n in range(8 * eight, 8 * eight + 8):
                    candidate[candidates] = n
                    candidates += can_cross[n]
        for c in range(candidates):
            n = candidate[c]
            one, begin = begin_of(state, n, release[n], now, current[n], tau_syn[n])
            first[c] = first_crossing(one, horizon - begin, neurons, n, threshold[n])
            if first[c] != NEVER:
                first[c] += begin
                if recurrent:
                    until = min(until, now + first[c] + delay)
        if until - now < horizon:  # another own spike arrives before
            horizon = until - now
            if alike:
                advance_alike(state, no_event, end, can_cross, horizon, tau_mem[0], tau_syn[0], threshold, learns)
            else:
                fill(coefficients, horizon, rates, neurons, learns)
                advance(state, no_event, end, can_cross, coefficients, threshold, learns)
        begin_spikes = spikes
        kept_holds = 0
        for h in range(holds):  # what ``advance`` has not got right
            n = held[h]
            one, begin = begin_of(state, n, release[n], now, current[n], tau_syn[n])
            if release[n] >= until:
                put(end, n, hold_one(one_of(state, n), horizon, current[n], tau_syn[n]))
                held[kept_holds] = n
                kept_holds += 1
            else:
                if keeps:
                    kept[last[n], RELEASE] = slope(one.i + current[n], 0.0, tau_mem[n])
                put(end, n, flow_one(one, horizon - begin, tau_mem[n], tau_syn[n], learns))
        holds = kept_holds
        for c in range(candidates):
            n, at = candidate[c], first[c]
            if at == NEVER or now + at > until:
                continue
            one, begin = begin_of(state, n, release[n], now, current[n], tau_syn[n])
            if not one.i < np.inf:
                return spikes, False
            dt = at - begin
            release[n] = -np.inf
            place[n] = spikes - begin_spikes
            while dt != NEVER:
                if spikes == room:
                    return spikes + 1, True
                if keeps and spikes - begin_spikes == len(fresh):
                    fresh = np.concatenate((fresh, np.empty_like(fresh)))
                at = min(at, horizon)
                one = flow_one(one, dt, tau_mem[n], tau_syn[n], learns)
                t = min(real(now + at), real(until))
                record(out, spikes, t, n, crossing_slope(one.i, v_th[n], tau_mem[n], current[n]), events - 1)
                if keeps:
                    numbers = fresh[spikes - begin_spikes]
                    numbers[BY_TAU_MEM], numbers[BY_TAU_SYN], numbers[RELEASE] = one.u_mem, one.u_syn, 0.0
                spikes += 1
                one = One(-current[n], one.i, one.u_mem, one.u_syn, one.i_syn)  # eq. (3)
                if refractory[n] > 0.0:
                    hold = min(refractory[n], horizon - at)
                    one = hold_one(one, hold, current[n], tau_syn[n])
                    if now + at + refractory[n] >= until:
                        release[n] = now + at + refractory[n]
                        held[holds] = n
                        holds += 1
                        put(end, n, one)
                        break
                    if keeps:
                        fresh[spikes - 1 - begin_spikes, RELEASE] = slope(one.i + current[n], 0.0, tau_mem[n])
                    at += hold
                dt = first_crossing(one, horizon - at, neurons, n, threshold[n])
                if dt == NEVER:
                    put(end, n, flow_one(one, horizon - at, tau_mem[n], tau_syn[n], learns))
                else:
                    at += dt
        if begin_spikes < spikes:
            sort_by_time(out, begin_spikes, spikes)
            for k in range(begin_spikes, spikes if keeps else begin_spikes):  # neuron by neuron, in the order of time
                n = out.neuron[k]
                kept[k] = fresh[place[n]]
                place[n] += 1
                last[n] = k
        state, end = end, state
        now = until
        row = no_event
        while recurrent and delivered < spikes and out.time[delivered] + delay <= now:
            add(state.i, row)
            row = recurrent_t[out.neuron[delivered]]
            delivered += 1
            events += 1
        while e < len(time) and time[e] <= now:
            add(state.i, row)
            row = weight_t[index[e]]
            e += 1
            events += 1
    return spikes, is_finite(state.u) and is_finite(state.i)


@jit
def add(i, row):
    for n in range(len(i)):
        i[n] += row[n]


@inlined
def begin_of(state, n, release, now, bias, tau_syn):
    """Neuron ``n`` when it is first free in a stretch that begins ``now``, and how long after its begin that is."""
    one = one_of(state, n)
    if release <= now:
        return one, 0.0
    return hold_one(one, release - now, bias, tau_syn), release - now


@jit
def first_crossing(one, horizon, neurons, n, threshold):
    """The time of the first crossing of one neuron, or NEVER."""
    tau_mem, tau_syn = neurons[TAU_MEM, n], neurons[TAU_SYN, n]
    horizon = min(horizon, REACH * max(tau_mem, tau_syn))
    u_end, i_end = flow(one.u, one.i, *decay(horizon, tau_mem, tau_syn))
    return next_crossing(one.u, one.i, u_end, i_end, horizon, tau_mem, tau_syn, threshold)


@jit(parallel=True)
def simulate_batch(arrivals, layer, out, kept, t_end):
    batch = len(arrivals.time)
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], finite[b] = simulate(arrivals.time[b], arrivals.source[b], layer, row_of(out, b, 0), kept[b], t_end)
    return counts, finite


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
