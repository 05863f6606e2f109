"""The forward pass: the spikes that a layer emits.

The neurons of a layer lie along the vector axis. For each arrival one branch-free pass advances all of them to the next
arrival and flags those that can cross the threshold on the way; only these enter the scalar crossing search.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import LIF, crossing_slope, decay, flow, least_after_crossing, remaining_reset

from ...arguments import Arrivals, Constants
from ...chunks import part_of
from ...compilation.exponential import exp
from ...compilation.jit import arrays, is_finite, jit
from ...crossing import NEVER, next_crossing, quick_crossing
from ...emission import record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import TINY, arrivals_before, at_rest, begin_with, last_together, list_candidates

LANES = 8  # neurons that are searched at once
TASKS = 64  # most tasks of a forward pass


def forward(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Tape:
    """Emitted spikes of a layer at rest that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N]."""
    return forward_between(time, index, weight_t, *at_rest(len(time), t_end), neuron)[0]


def forward_between(
    time: Tensor, index: Tensor, weight_t: Tensor, state: Tensor, stop: Tensor, neuron: LIF
) -> tuple[Tape, Tensor]:
    """The same for a layer whose V and I are ``state`` [2, B, N] just before the first arrivals, up to ``stop`` [B] in ms; and
    its state then, before what arrives then. A layer at rest has a state [2, 0, 0], and so it has at the end."""
    arrivals, (weights,), constants = Arrivals(*arrays(time, index)), arrays(weight_t), Constants.of(neuron)
    batch, neurons = len(time), weight_t.shape[1]
    end = torch.zeros_like(state)
    states = arrays(stop, state, end)
    tape, _ = recorded(
        lambda out, _: simulate_batch(arrivals, weights, out, constants, *states),
        batch,
        neurons,
        weights.dtype,
        min(batch, TASKS),
    )
    return tape, end


@jit
def advance(v, i, row, v_end, i_end, can_cross, a, s, phi, v_th):
    """An arrival at all neurons, their flow over the stretch after it, and which of them can cross the threshold in it, by
    eq. (15): a few of these do not. After a stretch so long that the states at its end have no digits left to compare, all
    can."""
    rest = a + phi
    least = least_after_crossing(a, phi, v_th) if min(rest, rest * v_th) > TINY else -np.inf
    for n in range(len(v)):
        v_n, i_n = flow(v[n], i[n] + row[n], a, s, phi)
        v_end[n], i_end[n] = v_n, i_n
        can_cross[n] = v_n >= least


@jit
def simulate(time, index, weight_t, out, constants, t_end, state, end):
    """One sample: write its spikes to the row ``out``, ordered by time, and its state to ``end`` [2, 1, N], unless that is
    empty. Returns how many spikes there are, also of those that do not fit, and whether all potentials stayed finite."""
    tau_mem, tau_syn, v_th = constants
    real, width = weight_t.dtype.type, weight_t.shape[1]
    v, i = np.zeros(width), np.zeros(width)
    begin_with(state, v, i)
    v_end, i_end = np.empty(width), np.empty(width)
    can_cross = np.zeros(-(-width // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    candidate = np.empty(len(can_cross) + 1, np.int64)
    v_from, i_from, v_to, crossing = np.zeros((4, len(can_cross)))
    time = time[: arrivals_before(time, t_end)]
    spikes = e = 0
    while e < len(time):
        now = time[e]
        e = last_together(i, time, index, weight_t, e)
        row = weight_t[index[e]]
        e += 1
        until = time[e] if e < len(time) else real(t_end)
        horizon = np.float64(until) - np.float64(now)
        a, s, phi = decay(horizon, tau_mem, tau_syn)
        advance(v, i, row, v_end, i_end, can_cross, a, s, phi, v_th)
        begin = spikes
        candidates = list_candidates(can_cross, can_cross_by_eight, candidate)
        for c in range(candidates):
            n = candidate[c]
            v_from[c], i_from[c], v_to[c] = v[n], i[n] + row[n], v_end[n]
        for c in range(-(-candidates // LANES) * LANES):
            crossing[c] = quick_crossing(v_from[c], i_from[c], v_to[c], horizon, tau_mem, tau_syn, v_th)
        for c in range(candidates):
            n, dt = candidate[c], crossing[c]
            v_n, i_n, v_stop, at = v_from[c], i_from[c], v_to[c], 0.0
            if not i_n < np.inf:
                return spikes, False
            if math.isnan(dt):
                dt = next_crossing(v_n, i_n, v_stop, i_end[n], horizon, tau_mem, tau_syn, v_th)
            while dt != NEVER:
                at = min(at + dt, horizon)
                i_n *= exp(-dt / tau_syn)
                v_n = 0.0  # eq. (3)
                t, rise = min(real(now + at), until), crossing_slope(i_n, v_th, tau_mem)
                record(out, spikes, t, n, rise, e - 1)
                spikes += 1
                if spikes > MAX_SPIKES_PER_SAMPLE:
                    return spikes, True
                v_stop -= remaining_reset(horizon - at, v_th, tau_mem)
                dt = next_crossing(v_n, i_n, v_stop, i_end[n], horizon - at, tau_mem, tau_syn, v_th)
            v_end[n] = v_stop
        if begin + 1 < spikes:
            sort_by_time(out, begin, spikes)
        v, v_end = v_end, v
        i, i_end = i_end, i
    if end.shape[1]:
        end[0, 0], end[1, 0] = v, i
    return spikes, is_finite(v) and is_finite(i)


@jit(parallel=True)
def simulate_batch(arrivals, weight_t, out, constants, stop, state, end):
    batch, (tasks, room) = len(arrivals.time), out.time.shape
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for task in numba.prange(tasks):
        first, after = part_of(task, tasks, batch)
        place = 0
        for b in range(first, after):
            row = row_of(out, task, place)
            counts[b], finite[b] = simulate(
                arrivals.time[b], arrivals.source[b], weight_t, row, constants, stop[b], state[:, b : b + 1],
                end[:, b : b + 1],
            )  # fmt: skip
            place = min(place + counts[b], room)
    return counts, finite
