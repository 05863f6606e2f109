"""The forward pass of layers whose neurons have parameters of their own, or receive their own spikes.

A neuron with a constant current b, which begins at time 0, follows the flow of eq. (6) in U = V - b and crosses v_th - b. In
the refractory period after a spike V is held at 0. A recurrent spike arrives after a delay, and acts as any arrival does: the
events of a sample are its arrivals and, in a recurrent layer, its own spikes as they arrive.

For the gradients of time constants, the derivatives of V and I by them flow forwards beside V and I, at fixed times of all
events, and are kept at each spike. What a parameter gives to the loss by moving the spike k is the jump of p there, eq. (9),
times the derivative of V. So nothing but spikes is remembered.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import crossing_slope, decay, decay_by_tau, flow, least_after_crossing, slope

from ...arguments import Arrivals
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, is_finite, jit
from ...crossing import NEVER, next_crossing
from ...emission import Columns, record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import TINY, arrivals_before, list_candidates
from .heterogeneous import (
    BIAS,
    BY_TAU_MEM,
    BY_TAU_SYN,
    KEPT,
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
from .span import Span, hand_over, sample_of, take_over, whole

# Of the longer time constant: no crossing comes later, since U is down to 1e-260 of what it was, and the sign of a smaller
# one means nothing.
REACH = 600.0


class State(NamedTuple):
    """U, I, and their derivatives by the time constants; [N] each."""

    u: np.ndarray
    i: np.ndarray
    u_mem: np.ndarray
    u_syn: np.ndarray
    i_syn: np.ndarray


def forward(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, t_end: float, learns: bool
) -> tuple[Tape, Tensor]:  # fmt: skip
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight`` [N, M] and its own
    spikes, ``delay`` ms later, through ``recurrent`` [N, N], or [N, 0] if it is not recurrent; ``neurons`` [N, 5]. And what is
    kept of each spike, [B, S, KEPT], or [B, S, 0] if there is nothing to keep."""
    return forward_between(time, index, weight, recurrent, delay, neurons, whole(time, t_end), learns)[:2]


def forward_between(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, span: Sequence[Tensor],
    learns: bool,
) -> tuple[Tape, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The same for a part of the window, the tensors of a ``Span``, whose own spikes come first in the tape. And, if there is
    a state, that at its end, the last spike [B, N] of each neuron, -1 for none, and how many own spikes [B] have arrived."""
    arrivals, layer = Arrivals(*arrays(time, index)), Layer.of(weight, recurrent, delay, neurons, learns)
    keeps = KEPT if learns or layer.neurons[REFRACTORY].any() else 0
    batch, end = len(time), torch.zeros_like(span[2])
    last, delivered = (end.new_full((end.shape[1], *size), -1, dtype=torch.int64) for size in ((len(neurons),), ()))
    carried, ends = Span(*arrays(*span)), arrays(end, last, delivered)
    tape, kept = recorded(
        lambda out, kept: simulate_batch(arrivals, layer, out, kept, carried, *ends),
        batch,
        len(neurons),
        arrivals.time.dtype,
        batch,
        keeps,
    )
    return tape, kept, end, last, delivered


class Now(NamedTuple):
    """The current and the threshold of U, [N] each, as they are before or after time 0."""

    current: np.ndarray
    threshold: np.ndarray


class Stretch(NamedTuple):
    """From one event to the next one."""

    begin: float
    end: float
    after: int  # the event at its begin


class Holds(NamedTuple):
    """Which neurons are held at 0."""

    neuron: np.ndarray  # [N] the neurons in its first places
    release: np.ndarray  # [N] until when; -inf if not at all
    last: np.ndarray  # [N] the last spike of each neuron


class Emitted(NamedTuple):
    """The row of a sample."""

    out: Columns
    kept: np.ndarray  # [S, KEPT] or [S, 0]
    place: np.ndarray  # [N] where the spikes of a neuron begin that are not yet sorted


@jit
def simulate(time, index, layer, out, kept, span, end_state, end_last):
    """One sample, as ``forward.simulate``; it also returns how many own spikes have arrived. It stops at a spike that does not
    fit, which would have acted on the others."""
    weight_t, recurrent_t, delay, neurons, _, _ = layer
    reach = REACH * np.maximum(neurons[TAU_MEM], neurons[TAU_SYN]).min()
    width, room, recurrent = neurons.shape[1], min(len(out.time), MAX_SPIKES_PER_SAMPLE), len(recurrent_t) > 0
    state, end = empty_state(width), empty_state(width)
    coefficients, rates = empty_coefficients(width, np.float64), rates_of(neurons[TAU_MEM], neurons[TAU_SYN])
    now_at = Now(np.zeros(width), neurons[V_TH].copy())  # the bias is still to begin
    no_event = np.zeros(width, weight_t.dtype)
    can_cross = np.zeros(-(-width // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    candidate = np.zeros(len(can_cross) + 1, np.int64)
    first = np.empty(len(can_cross))  # of each candidate, the time from the begin of the stretch to its first crossing
    holds = Holds(np.empty(width, np.int64), np.full(width, -np.inf), np.full(width, -1))
    emitted = Emitted(out, kept, np.empty(width, np.int64))
    now, t_end, time = span.begin, span.stop, time[: arrivals_before(time, span.stop)]
    begun = now > 0.0
    if begun:
        begin_bias(state, now_at, neurons[BIAS])
    spikes, held = take_over(span, state, holds, out)
    if kept.shape[1]:
        kept[:spikes, RELEASED_AFTER] = np.inf
    e, delivered = 0, span.delivered
    if spikes > room:
        return spikes, delivered, True
    while now < t_end:
        row = no_event
        while recurrent and delivered < spikes and out.time[delivered] + delay <= now:
            add(state.i, row)
            row = recurrent_t[out.neuron[delivered]]
            delivered += 1
        while e < len(time) and time[e] <= now:
            add(state.i, row)
            row = weight_t[index[e]]
            e += 1
        if now >= 0.0 and not begun:
            begun = True
            begin_bias(state, now_at, neurons[BIAS])
        until = np.float64(time[e]) if e < len(time) else t_end
        if not begun:
            until = min(until, 0.0)
        if recurrent and delivered < spikes:
            until = min(until, np.float64(out.time[delivered]) + delay)
        advance(state, row, end, can_cross, until - now, layer, coefficients, rates, now_at.threshold)
        for h in range(held):
            can_cross[holds.neuron[h]] = holds.release[holds.neuron[h]] < until
        candidates = list_candidates(can_cross, can_cross_by_eight, candidate)
        horizon = until - now
        for c in range(candidates):
            n = candidate[c]
            if holds.release[n] > now or horizon > reach:
                one, begin = begin_of(state, row, n, holds.release[n], now, now_at.current[n], neurons[TAU_SYN, n])
                first[c] = first_crossing(one, horizon - begin, neurons, n, now_at.threshold[n])
            else:  # the state at the end is known
                begin, tau_mem, tau_syn = 0.0, neurons[TAU_MEM, n], neurons[TAU_SYN, n]
                first[c] = next_crossing(
                    state.u[n], state.i[n] + row[n], end.u[n], end.i[n], horizon, tau_mem, tau_syn, now_at.threshold[n]
                )
            if first[c] != NEVER:
                first[c] += begin
                if recurrent:
                    until = min(until, now + first[c] + delay)
        if until - now < horizon:  # another own spike arrives before
            advance(state, row, end, can_cross, until - now, layer, coefficients, rates, now_at.threshold)
        stretch = Stretch(now, until, delivered - span.delivered + e - 1)
        if held > 0:
            held = end_holds(state, row, end, stretch, holds, held, kept, now_at, layer)
        begin_spikes = spikes
        for c in range(candidates):
            if first[c] == NEVER or now + first[c] > until:
                continue
            if not state.i[candidate[c]] + row[candidate[c]] < np.inf:
                return spikes, delivered, False
            spikes, held = emit(
                candidate[c],
                first[c],
                spikes,
                begin_spikes,
                state,
                row,
                end,
                stretch,
                holds,
                held,
                emitted,
                now_at,
                layer,
            )
            if spikes > room:
                return spikes, delivered, True
        if begin_spikes < spikes:
            sort(emitted, begin_spikes, spikes, holds.last)
        state, end = end, state
        now = until
    hand_over(state, holds, end_state, end_last)
    return spikes, delivered, is_finite(state.u) and is_finite(state.i)


@jit
def add(i, row):
    for n in range(len(i)):
        i[n] += row[n]


@jit
def begin_bias(state, now_at, bias):
    for n in range(len(bias)):
        state.u[n] -= bias[n]
        now_at.threshold[n] -= bias[n]
        now_at.current[n] = bias[n]


@inlined
def end_holds(state, row, end, stretch, holds, held, kept, now_at, layer):
    """What ``advance`` has not got right: the ends of neurons that are held in a stretch. Returns how many still are after."""
    begin, until, after = stretch
    still = 0
    for h in range(held):
        n = holds.neuron[h]
        tau_mem, tau_syn = layer.neurons[TAU_MEM, n], layer.neurons[TAU_SYN, n]
        one, since = begin_of(state, row, n, holds.release[n], begin, now_at.current[n], tau_syn)
        if holds.release[n] >= until:
            put(end, n, hold_one(one_of(state, row, n), until - begin, now_at.current[n], tau_syn))
            holds.neuron[still] = n
            still += 1
        else:
            if kept.shape[1]:
                kept[holds.last[n], RELEASE] = slope(one.i + now_at.current[n], 0.0, tau_mem)
                kept[holds.last[n], RELEASED_AFTER] = after
            put(end, n, flow_one(one, until - begin - since, tau_mem, tau_syn, layer.learns))
    return still


@inlined
def emit(n, at, spikes, begin_spikes, state, row, end, stretch, holds, held, emitted, now_at, layer):
    """Write the spikes of neuron ``n`` in a stretch, the first of which comes the time ``at`` after its begin, and the state at
    its ``end``. Returns how many spikes and holds there are then; it stops at a spike that does not fit."""
    (out, kept, place), (now, until, after) = emitted, stretch
    tau_mem, tau_syn, v_th, _, refractory = layer.neurons[:, n]
    current, threshold, real = now_at.current[n], now_at.threshold[n], out.time.dtype.type
    horizon = until - now
    one, begin = begin_of(state, row, n, holds.release[n], now, current, tau_syn)
    dt = at - begin
    holds.release[n] = -np.inf
    place[n] = spikes - begin_spikes
    while dt != NEVER:
        if spikes == min(len(out.time), MAX_SPIKES_PER_SAMPLE):
            return spikes + 1, held
        at = min(at, horizon)
        one = flow_one(one, dt, tau_mem, tau_syn, layer.learns)
        record(out, spikes, min(real(now + at), real(until)), n, crossing_slope(one.i, v_th, tau_mem, current), after)
        if kept.shape[1]:
            kept[spikes, BY_TAU_MEM], kept[spikes, BY_TAU_SYN], kept[spikes, RELEASE] = one.u_mem, one.u_syn, 0.0
            kept[spikes, RELEASED_AFTER] = np.inf
        spikes += 1
        one = One(-current, one.i, one.u_mem, one.u_syn, one.i_syn)  # eq. (3)
        if refractory > 0.0:
            hold = min(refractory, horizon - at)
            one = hold_one(one, hold, current, tau_syn)
            if now + at + refractory >= until:
                holds.release[n], holds.neuron[held] = now + at + refractory, n
                put(end, n, one)
                return spikes, held + 1
            if kept.shape[1]:
                kept[spikes - 1, RELEASE] = slope(one.i + current, 0.0, tau_mem)
                kept[spikes - 1, RELEASED_AFTER] = after
            at += hold
        dt = first_crossing(one, horizon - at, layer.neurons, n, threshold)
        if dt != NEVER:
            at += dt
    put(end, n, flow_one(one, horizon - at, tau_mem, tau_syn, layer.learns))
    return spikes, held


@inlined
def sort(emitted, begin, end, last):
    """Sort the spikes [begin, end), which lie neuron by neuron, by time, and note the ``last`` one of each neuron."""
    out, kept, place = emitted
    if end == begin + 1:
        last[out.neuron[begin]] = begin
        return
    sort_by_time(out, begin, end)
    fresh = kept[begin:end].copy()
    for k in range(begin, end):
        n = out.neuron[k]
        kept[k] = fresh[place[n]]
        place[n] += 1
        last[n] = k


@inlined
def advance(state, row, end, can_cross, length, layer, coefficients, rates, threshold):
    """An event at all neurons, their flow over the stretch after it, and which of them can cross the threshold in it."""
    if layer.alike:
        tau_mem, tau_syn = layer.neurons[TAU_MEM, 0], layer.neurons[TAU_SYN, 0]
        a, s, phi = decay(length, tau_mem, tau_syn)
        advance_alike(state.u, state.i, row, end.u, end.i, can_cross, a, s, phi, threshold)
        if layer.learns:
            by_tau = decay_by_tau(length, a, s, phi, tau_mem, tau_syn)
            advance_derivatives(state.u, state.i, row, state[2:], end[2:], a, s, phi, by_tau)
    else:
        fill(coefficients, length, rates, layer.neurons, layer.learns)
        advance_different(state, row, end, can_cross, coefficients, threshold, layer.learns)


@inlined
def least_end(a, phi, threshold):
    """The least U with which a stretch can end after a crossing of the ``threshold``, eq. (15); a U that rises to a threshold
    below 0 stays above it. After a stretch so long that nothing is left to compare, all may have crossed."""
    lost = min(a + phi, (a + phi) * threshold) <= TINY
    return threshold if threshold <= 0.0 else (-np.inf if lost else least_after_crossing(a, phi, threshold))


@jit
def advance_different(state, row, end, can_cross, coefficients, threshold, learns):
    u, i, u_mem, u_syn, i_syn = state
    u_end, i_end, u_mem_end, u_syn_end, i_syn_end = end
    a, s, phi, a_mem, phi_mem, s_syn, phi_syn = coefficients
    for n in range(len(u)):
        u_end[n] = a[n] * u[n] + phi[n] * (i[n] + row[n])
    for n in range(len(u)):
        i_end[n] = s[n] * (i[n] + row[n])
    for n in range(len(u)):
        can_cross[n] = u_end[n] >= least_end(a[n], phi[n], threshold[n])
    if learns:
        for n in range(len(u)):
            u_mem_end[n] = a[n] * u_mem[n] + a_mem[n] * u[n] + phi_mem[n] * (i[n] + row[n])
        for n in range(len(u)):
            u_syn_end[n] = a[n] * u_syn[n] + phi_syn[n] * (i[n] + row[n]) + phi[n] * i_syn[n]
        for n in range(len(u)):
            i_syn_end[n] = s[n] * i_syn[n] + s_syn[n] * (i[n] + row[n])


@jit
def advance_alike(u, i, row, u_end, i_end, can_cross, a, s, phi, threshold):
    for n in range(len(u)):
        u_n, i_n = flow(u[n], i[n] + row[n], a, s, phi)
        u_end[n], i_end[n] = u_n, i_n
        can_cross[n] = u_n >= least_end(a, phi, threshold[n])


@jit
def advance_derivatives(u, i, row, before, after, a, s, phi, by_tau):
    """Of neurons that have the same time constants, from those ``before`` the stretch to those ``after`` it."""
    (u_mem, u_syn, i_syn), (u_mem_end, u_syn_end, i_syn_end), (a_mem, phi_mem, s_syn, phi_syn) = before, after, by_tau
    for n in range(len(u)):
        i_n = i[n] + row[n]
        u_mem_end[n] = a * u_mem[n] + a_mem * u[n] + phi_mem * i_n
        u_syn_end[n] = a * u_syn[n] + phi_syn * i_n + phi * i_syn[n]
        i_syn_end[n] = s * i_syn[n] + s_syn * i_n


class One(NamedTuple):
    """The state of one neuron."""

    u: float
    i: float
    u_mem: float
    u_syn: float
    i_syn: float


@inlined
def one_of(state, row, n):
    """Neuron ``n`` just after an event."""
    return One(state.u[n], state.i[n] + row[n], state.u_mem[n], state.u_syn[n], state.i_syn[n])


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


@inlined
def begin_of(state, row, n, release, now, bias, tau_syn):
    """Neuron ``n`` when it is first free in a stretch that begins ``now``, and how long after its begin that is."""
    one = one_of(state, row, n)
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
def simulate_batch(arrivals, layer, out, kept, span, end_state, end_last, end_delivered):
    batch = len(arrivals.time)
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], delivered, finite[b] = simulate(
            arrivals.time[b], arrivals.source[b], layer, row_of(out, b, 0), kept[b], sample_of(span, b),
            end_state[:, b : b + 1], end_last[b : b + 1],
        )  # fmt: skip
        if len(end_delivered):
            end_delivered[b] = delivered
    return counts, finite
