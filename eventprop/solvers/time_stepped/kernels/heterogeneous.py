"""Layers of all kinds on a grid, in one walk through the steps: neurons with parameters of their own, synapses with delays of
their own, and feedback, which comes a step later or still later.

A neuron with a constant current b follows the flow of eq. (6) in U = V - b and crosses v_th - b. In the refractory period after
a spike V is held at 0. What ``reference`` says of the arrivals of a step holds here too. What arrives in a later step waits in
a ring, one place for each step of the longest delay.

For the gradients of time constants, the derivatives of U and I by them flow forwards beside U and I, at fixed times of all
arrivals and spikes, and are kept at each spike. What a parameter gives to the loss by moving the spike k is the jump of p
there, eq. (9), times the derivative of V. So nothing but spikes is remembered.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, R steps in the ring.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.autograd import elementwise_decay
from eventprop.core.neuron import (
    arrival_offset,
    crossing_slope,
    decay,
    decay_by_tau,
    euler_step,
    flow,
    least_after_crossing,
    slope,
)

from ...arguments import Arrivals
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, is_finite, jit
from ...crossing import NEVER, next_crossing
from ...emission import record, recorded, row_of, sort_by_time
from ...event_driven.kernels.heterogeneous import (
    BIAS,
    REFRACTORY,
    TAU_MEM,
    TAU_SYN,
    V_TH,
    empty_coefficients,
    fill,
    rates_of,
)  # fmt: skip
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from ..grid import Steps
from ..reference import AFTER, BEFORE, BETWEEN, EDGE, KINDS

# what is kept of a spike: the derivatives of V by tau_mem and tau_syn; and of the end of the hold after it the slope of V, and
# where in its step it lies
BY_TAU_MEM, BY_TAU_SYN, RELEASE, RELEASE_KIND = range(4)
# what waits in the ring: psp and psc, their derivatives by tau_mem and tau_syn
PSP, PSC, PSP_MEM, PSP_SYN, PSC_SYN = range(5)
NONE = -1


class Layer(NamedTuple):
    """Its connections and neurons; one without delays of synapses, or feedback, has an empty ``delay_t`` or ``recurrent_t``."""

    weight_t: np.ndarray  # [M, N]
    delay_t: np.ndarray  # [M, N] or [0, N], in ms
    recurrent_t: np.ndarray  # [N, N] or [0, N]
    delay: float  # of recurrent spikes, in ms
    neurons: np.ndarray  # [5, N]
    step: np.ndarray  # [7, N], the coefficients of a step, as in ``Coefficients``
    places: int  # R
    alike: bool  # whether all neurons have the same time constants
    learns: bool  # whether gradients of time constants are wanted

    @classmethod
    def of(
        cls, weight: Tensor, delays: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, grid: Steps, learns: bool
    ) -> Layer:
        parameters = neurons.detach().double().t().contiguous()
        tau_mem, tau_syn = parameters[TAU_MEM], parameters[TAU_SYN]
        a, s, phi = elementwise_decay(torch.full_like(tau_mem, grid.dt), tau_mem, tau_syn)
        a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(torch.full_like(a, grid.dt), a, s, phi, tau_mem, tau_syn)
        if not grid.exact:
            a, s, phi = euler_step(grid.dt, tau_mem, tau_syn)
        step = torch.stack([a, s, phi, a_mem, phi_mem, s_syn, phi_syn]).numpy()
        longest = max(float(delays.max()) if delays.numel() else 0.0, delay if recurrent.numel() else 0.0)
        places = min(math.floor(longest / grid.dt) + 3, grid.steps) if longest else 1
        alike = bool((parameters[:V_TH] == parameters[:V_TH, :1]).all())
        weight_t, delay_t, recurrent_t = (x.detach().t().contiguous().numpy() for x in (weight, delays, recurrent))
        return cls(weight_t, delay_t, recurrent_t, delay, parameters.numpy(), step, places, alike, learns)


class State(NamedTuple):
    """U, I, and their derivatives by the time constants; [N] each."""

    u: np.ndarray
    i: np.ndarray
    u_mem: np.ndarray
    u_syn: np.ndarray
    i_syn: np.ndarray


class One(NamedTuple):
    """The state of one neuron within a step. There what stands for its arrivals can depend on tau_mem, and so I too."""

    u: float
    i: float
    u_mem: float
    u_syn: float
    i_mem: float
    i_syn: float


class Holds(NamedTuple):
    """Of each neuron, until when V is held at 0, and the spike that began it, until it is over; else NONE."""

    until: np.ndarray
    spike: np.ndarray


def forward(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, grid: Steps,
    learns: bool,
) -> tuple[Tape, Tensor]:  # fmt: skip
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight`` [N, M], with ``delays``
    [N, M] or [N, 0], and its own spikes, ``delay`` ms later, through ``recurrent`` [N, N] or [N, 0]; ``neurons`` [N, 5]. And
    what is kept of each spike, [B, S, 4], or [B, S, 0] if there is nothing to keep."""
    arrivals = Arrivals(*arrays(time, index))
    layer = Layer.of(weight, delays, recurrent, delay, neurons, grid, learns)
    keeps = 4 if learns or layer.neurons[REFRACTORY].any() else 0
    return recorded(
        lambda out, kept: simulate_batch(arrivals, layer, grid, out, kept),
        len(time),
        len(neurons),
        arrivals.time.dtype,
        len(time),
        keeps,
    )


@inlined
def step_at(t, grid):
    """The step in which what comes at ``t`` acts, as ``plain.steps_of_arrivals``; ``grid.steps`` at the end of the window and
    beyond."""
    if not t < grid.steps * grid.dt:
        return grid.steps
    if not grid.exact:
        return np.int64(np.rint(t / grid.dt))
    step = np.int64(math.floor(t / grid.dt))
    step += np.int64((step + 1) * grid.dt <= t) - np.int64(step * grid.dt > t)  # undo the rounding of t / dt
    return min(step, grid.steps - 1)


@jit
def effects_of(t, step, effects, layer, grid, rates):
    """Eq. (11) for all neurons: the effects at the end of ``step`` of what arrives at ``t``, as coefficients of its flow."""
    y = min(max((step + 1) * grid.dt - t, 0.0), grid.dt)
    if not grid.exact:
        effects.s[:], effects.phi[:] = layer.step[1], layer.step[2]
    elif not layer.alike:
        fill(effects, y, rates, layer.neurons, layer.learns)
    else:
        tau_mem, tau_syn = layer.neurons[TAU_MEM, 0], layer.neurons[TAU_SYN, 0]
        a, s, phi = decay(y, tau_mem, tau_syn)
        effects.s[:], effects.phi[:] = s, phi
        if layer.learns:
            _, phi_mem, s_syn, phi_syn = decay_by_tau(y, a, s, phi, tau_mem, tau_syn)
            effects.phi_mem[:], effects.s_syn[:], effects.phi_syn[:] = phi_mem, s_syn, phi_syn


@jit
def deliver(place, row, effects, learns):
    """Add what an arrival through the weights ``row`` raises to the ``place`` of its step."""
    _, s, phi, _, phi_mem, s_syn, phi_syn = effects
    psp, psc = place[PSP], place[PSC]
    for n in range(len(row)):
        psp[n] += phi[n] * row[n]
        psc[n] += s[n] * row[n]
    if learns:
        psp_mem, psp_syn, psc_syn = place[PSP_MEM], place[PSP_SYN], place[PSC_SYN]
        for n in range(len(row)):
            psp_mem[n] += phi_mem[n] * row[n]
        for n in range(len(row)):
            psp_syn[n] += phi_syn[n] * row[n]
        for n in range(len(row)):
            psc_syn[n] += s_syn[n] * row[n]


@jit
def delayed_effects(t, delays, effects, steps, layer, grid):
    """The same as ``effects_of`` for synapses with ``delays`` [N], and the ``steps`` [N] in which they transmit what was
    emitted at ``t``."""
    _, s, phi, _, phi_mem, s_syn, phi_syn = effects
    tau_mem, tau_syn = layer.neurons[TAU_MEM], layer.neurons[TAU_SYN]
    for n in range(len(delays)):
        steps[n] = step_at(t + np.float64(delays[n]), grid)
    for n in range(len(delays)):
        y = min(max((steps[n] + 1) * grid.dt - (t + np.float64(delays[n])), 0.0), grid.dt)
        _, s[n], phi[n] = decay(y, tau_mem[n], tau_syn[n])
    if layer.learns:
        for n in range(len(delays)):
            y = min(max((steps[n] + 1) * grid.dt - (t + np.float64(delays[n])), 0.0), grid.dt)
            a_n, s_n, phi_n = decay(y, tau_mem[n], tau_syn[n])
            _, phi_mem[n], s_syn[n], phi_syn[n] = decay_by_tau(y, a_n, s_n, phi_n, tau_mem[n], tau_syn[n])


@jit
def deliver_delayed(ring, comes, row, effects, steps, grid, learns):
    """Add what a spike raises, through the weights ``row``, to the places of the ``steps`` in which it arrives."""
    for n in range(len(row)):
        if steps[n] < grid.steps:
            at = steps[n] % len(ring)
            comes[at] = True
            ring[at, PSP, n] += effects.phi[n] * row[n]
            ring[at, PSC, n] += effects.s[n] * row[n]
            if learns:
                ring[at, PSP_MEM, n] += effects.phi_mem[n] * row[n]
                ring[at, PSP_SYN, n] += effects.phi_syn[n] * row[n]
                ring[at, PSC_SYN, n] += effects.s_syn[n] * row[n]


@jit
def advance(state, end, can_cross, place, comes, least, layer):
    """Flow of all neurons over one step, with what arrives in it, and which of them can cross the threshold in it, as
    ``plain.advance``. Each loop writes to one array: a loop that wrote to several would have to be checked for more overlaps
    than compilers do, and not become vector instructions."""
    a, s, phi = layer.step[0], layer.step[1], layer.step[2]
    for n in range(len(a)):
        end.u[n] = a[n] * state.u[n] + phi[n] * state.i[n]
    for n in range(len(a)):
        end.i[n] = s[n] * state.i[n]
    if layer.learns:
        a_mem, phi_mem, s_syn, phi_syn = layer.step[3], layer.step[4], layer.step[5], layer.step[6]
        for n in range(len(a)):
            end.u_mem[n] = a[n] * state.u_mem[n] + a_mem[n] * state.u[n] + phi_mem[n] * state.i[n] + place[PSP_MEM, n]
        for n in range(len(a)):
            end.u_syn[n] = a[n] * state.u_syn[n] + phi_syn[n] * state.i[n] + phi[n] * state.i_syn[n] + place[PSP_SYN, n]
        for n in range(len(a)):
            end.i_syn[n] = s[n] * state.i_syn[n] + s_syn[n] * state.i[n] + place[PSC_SYN, n]
    if not comes:
        for n in range(len(a)):
            can_cross[n] = end.u[n] >= least[n]
        return
    for n in range(len(a)):
        can_cross[n] = max(end.u[n], end.u[n] + place[PSP, n]) >= least[n]
    for n in range(len(a)):
        end.u[n] += place[PSP, n]
    for n in range(len(a)):
        end.i[n] += place[PSC, n]


@jit
def flow_one(one, length, tau_mem, tau_syn, learns):
    """Eq. (6) for one neuron, with its derivatives."""
    a, s, phi = decay(length, tau_mem, tau_syn)
    u, i = flow(one.u, one.i, a, s, phi)
    if not learns:
        return One(u, i, 0.0, 0.0, 0.0, 0.0)
    a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(length, a, s, phi, tau_mem, tau_syn)
    return One(
        u, i,
        a * one.u_mem + a_mem * one.u + phi_mem * one.i + phi * one.i_mem,
        a * one.u_syn + phi_syn * one.i + phi * one.i_syn,
        s * one.i_mem, s * one.i_syn + s_syn * one.i,
    )  # fmt: skip


@jit
def hold_one(one, length, bias, tau_syn):
    """One neuron after V was held at 0 for a time: only I flows, and V does not depend on anything."""
    s = exp(-length / tau_syn)
    return One(-bias, s * one.i, 0.0, 0.0, s * one.i_mem, s * one.i_syn + one.i * s * length / (tau_syn * tau_syn))


@jit
def as_one(place, n, dt, tau_mem, tau_syn, learns):
    """What stands for the arrivals of a step, as in ``reference``: the time before its end, where spikes behind it lie, and
    what it adds to U and I, and their derivatives by the time constants.

    To U it adds 0, whose derivatives are not: when it comes depends on (psp, psc), but not what follows, which is the state at
    the end of the step, run backwards.
    """
    psp, psc = np.float64(place[PSP, n]), np.float64(place[PSC, n])
    y, kind = arrival_offset(psp, psc, tau_mem, tau_syn), AFTER
    if -EDGE * dt <= y <= (1.0 + EDGE) * dt:
        y = min(max(y, 0.0), dt)
    else:
        y, kind = min(dt, tau_mem, tau_syn), BETWEEN
    a, s, phi = decay(y, tau_mem, tau_syn)
    weight = psc / s if kind == AFTER else psp / phi
    if not learns:
        return y, kind, One(0.0, weight, 0.0, 0.0, 0.0, 0.0)
    psp_mem, psp_syn = np.float64(place[PSP_MEM, n]), np.float64(place[PSP_SYN, n])
    _, phi_mem, s_syn, phi_syn = decay_by_tau(y, a, s, phi, tau_mem, tau_syn)
    if kind == AFTER:
        i_syn = (np.float64(place[PSC_SYN, n]) - weight * s_syn) / s
        u_mem, u_syn = (psp_mem - phi_mem * weight) / a, (psp_syn - phi_syn * weight - phi * i_syn) / a
        return y, kind, One(0.0, weight, u_mem, u_syn, 0.0, i_syn)
    # y is the shorter time constant in a longer step: it comes the earlier the longer that is
    by_mem, by_syn = 0.0, 0.0
    if y < dt:
        by_mem, by_syn = (0.5, 0.5) if tau_mem == tau_syn else (np.float64(y == tau_mem), np.float64(y == tau_syn))
    rise, fall = weight / tau_mem, weight / tau_syn
    by_y = (s - phi) / tau_mem
    i_mem = (psp_mem - weight * (phi_mem + by_y * by_mem)) / phi - fall * by_mem
    i_syn = (psp_syn - weight * (phi_syn + by_y * by_syn)) / phi - fall * by_syn
    return y, kind, One(0.0, weight, rise * by_mem, rise * by_syn, i_mem, i_syn)


@jit
def walk(n, step, place, comes, begin, end, layer, grid, holds, out, kept, spikes):
    """One neuron through one step, from spike to spike; ``kept`` may have no columns. Returns how many spikes there are, one
    more than fit if they do not."""
    neurons, learns, dt = layer.neurons, layer.learns, grid.dt
    tau_mem, tau_syn, v_th, bias = neurons[TAU_MEM, n], neurons[TAU_SYN, n], neurons[V_TH, n], neurons[BIAS, n]
    room = min(len(out.time), MAX_SPIKES_PER_SAMPLE)
    one = One(begin.u[n], begin.i[n], begin.u_mem[n], begin.u_syn[n], 0.0, begin.i_syn[n])
    y, last, jump = 0.0, BEFORE, One(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if comes:
        y, last, jump = as_one(place, n, dt, tau_mem, tau_syn, learns)
    for part in range(2 if comes else 1):
        kind, left = (last, y) if part else (BEFORE, dt - y)
        stop = (step + 1) * dt - (0.0 if part else y)
        if part:  # eq. (4)
            one = One(
                one.u, one.i + jump.i, one.u_mem + jump.u_mem, one.u_syn + jump.u_syn, one.i_mem + jump.i_mem,
                one.i_syn + jump.i_syn,
            )  # fmt: skip
        while True:
            if holds.spike[n] != NONE:
                free = min(left, max(stop - holds.until[n], 0.0))
                if free < left:
                    one = hold_one(one, left - free, bias, tau_syn)
                    left = free
                if free > 0.0:
                    freed = kept[holds.spike[n]]
                    freed[RELEASE], freed[RELEASE_KIND] = slope(one.i + bias, 0.0, tau_mem), kind
                    holds.spike[n] = NONE
            u_stop, i_stop = flow(one.u, one.i, *decay(left, tau_mem, tau_syn))
            after = next_crossing(one.u, one.i, u_stop, i_stop, left, tau_mem, tau_syn, v_th - bias)
            if after == NEVER:
                break
            if spikes == room:
                return spikes + 1
            after = min(after, left)
            one = flow_one(one, after, tau_mem, tau_syn, learns)
            left -= after
            record(out, spikes, stop - left, n, crossing_slope(one.i, v_th, tau_mem, bias), KINDS * step + kind)
            if kept.shape[1]:
                kept[spikes, BY_TAU_MEM], kept[spikes, BY_TAU_SYN] = one.u_mem, one.u_syn
                kept[spikes, RELEASE] = 0.0
            if neurons[REFRACTORY, n] > 0.0:
                holds.until[n] = np.float64(out.time[spikes]) + neurons[REFRACTORY, n]
                holds.spike[n] = spikes
            one = One(-bias, one.i, one.u_mem, one.u_syn, one.i_mem, one.i_syn)  # eq. (3)
            spikes += 1
        one = flow_one(one, left, tau_mem, tau_syn, learns)
    end.u[n], end.u_mem[n], end.u_syn[n] = one.u, one.u_mem, one.u_syn
    return spikes


@jit
def simulate(time, source, layer, grid, out, kept):
    """One sample, as ``plain.simulate``. It stops at a spike that does not fit, which would have acted on the others."""
    neurons, learns, width = layer.neurons, layer.learns, layer.neurons.shape[1]
    threshold, real = neurons[V_TH] - neurons[BIAS], layer.weight_t.dtype.type
    least = threshold.copy()
    if grid.exact:
        for n in range(width):
            if threshold[n] > 0.0:  # a U that has reached one below 0 stays above it
                least[n] = least_after_crossing(layer.step[0, n], layer.step[2, n], threshold[n])
    state, end = empty_state(width), empty_state(width)
    state.u[:] = -neurons[BIAS]
    ring = np.zeros((layer.places, 5 if learns else 2, width), layer.weight_t.dtype)
    comes = np.zeros(layer.places, np.bool_)
    effects, rates = empty_coefficients(width, layer.weight_t.dtype), rates_of(neurons[TAU_MEM], neurons[TAU_SYN])
    steps = np.empty(width, np.int64)
    can_cross = np.zeros(-(-width // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    holds = Holds(np.full(width, -np.inf), np.full(width, NONE))
    held, place_of = np.empty(width, np.int64), np.empty(width, np.int64)
    held_now = spikes = e = 0
    for step in range(grid.steps):
        place = step % layer.places
        while e < len(time) and step_at(np.float64(time[e]), grid) == step:
            t, row = np.float64(time[e]), layer.weight_t[source[e]]
            if len(layer.delay_t):
                delayed_effects(t, layer.delay_t[source[e]], effects, steps, layer, grid)
                deliver_delayed(ring, comes, row, effects, steps, grid, learns)
            else:
                effects_of(t, step, effects, layer, grid, rates)
                deliver(ring[place], row, effects, learns)
                comes[place] = True
            e += 1
        advance(state, end, can_cross, ring[place], comes[place], least, layer)
        for h in range(held_now):
            can_cross[held[h]] = True
        first, held_now = spikes, 0
        for eight in range(len(can_cross_by_eight)):
            if can_cross_by_eight[eight] == 0:
                continue
            for n in range(8 * eight, 8 * eight + 8):
                if not can_cross[n]:
                    continue
                if not (abs(end.u[n]) < np.inf and abs(end.i[n]) < np.inf):
                    return spikes, False
                place_of[n] = spikes
                if grid.exact:
                    spikes = walk(n, step, ring[place], comes[place], state, end, layer, grid, holds, out, kept, spikes)
                elif end.u[n] >= threshold[n]:
                    rise = (end.u[n] - state.u[n]) / grid.dt
                    record(out, spikes, (step + 1) * grid.dt, n, rise, KINDS * step + AFTER)
                    end.u[n] = 0.0
                    spikes += 1
                if spikes > min(len(out.time), MAX_SPIKES_PER_SAMPLE):
                    return spikes, True
                if holds.spike[n] != NONE:
                    held[held_now] = n
                    held_now += 1
        ring[place] = real(0.0)
        comes[place] = False
        if first < spikes:
            sort_spikes(out, kept, first, spikes, place_of, holds)
        if len(layer.recurrent_t):
            for k in range(first, spikes):
                t = np.float64(out.time[k]) + layer.delay
                arrives = max(step_at(t, grid), step + 1)
                if arrives < grid.steps:
                    effects_of(t, arrives, effects, layer, grid, rates)
                    deliver(ring[arrives % layer.places], layer.recurrent_t[out.neuron[k]], effects, learns)
                    comes[arrives % layer.places] = True
        state, end = end, state
    return spikes, is_finite(state.u) and is_finite(state.i)


@jit
def empty_state(width):
    return State(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width))


@jit
def sort_spikes(out, kept, first, stop, place_of, holds):
    """Sort the spikes of one step, and what is kept of them, which lies neuron by neuron, those of ``n`` from ``place_of[n]``
    on."""
    sort_by_time(out, first, stop)
    if kept.shape[1] == 0:
        return
    unsorted = kept[first:stop].copy()
    for k in range(first, stop):
        n = out.neuron[k]
        kept[k] = unsorted[place_of[n] - first]
        if holds.spike[n] == place_of[n]:
            holds.spike[n] = k
        place_of[n] += 1


@jit(parallel=True)
def simulate_batch(arrivals, layer, grid, out, kept):
    batch = len(arrivals.time)
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], finite[b] = simulate(arrivals.time[b], arrivals.source[b], layer, grid, row_of(out, b, 0), kept[b])
    return counts, finite
