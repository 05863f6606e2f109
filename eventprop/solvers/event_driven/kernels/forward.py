"""The forward pass: the spikes that a layer emits.

The neurons of a layer lie along the vector axis. For each arrival one branch-free pass advances all of them to the next
arrival and flags those that can cross the threshold on the way; only these enter the scalar crossing search.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import LIF, decay, flow, peak_time, slope

from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, is_finite, jit, threads
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape, check_finite, check_spike_count
from .common import TINY, arrivals_before, last_together

NEVER = -1.0
# Of the shorter time constant: a step x as small on the parabola misses V by at most I x^3/2, 1e-14 of the threshold for an I
# as large as the threshold. For a larger I the step must be smaller.
EXACT = 3e-5
ROUNDING = 1 - 1e-9  # so that no crossing is lost to rounding, whose relative error is near 1e-16
LANES = 8  # neurons that are searched at once
TASKS = 64  # most tasks of a forward pass


def forward(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Tape:
    """Emitted spikes of a layer at rest that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N]."""
    arrivals, constants = arrays(time, index, weight_t), (neuron.tau_mem, neuron.tau_syn, neuron.v_th, t_end)
    batch, neurons = len(time), weight_t.shape[1]
    return recorded(
        lambda *out: simulate_batch(*arrivals, *out, *constants), batch, neurons, arrivals[-1].dtype, min(batch, TASKS)
    )


def recorded(simulate: Callable[..., np.ndarray], batch: int, neurons: int, dtype: np.dtype, tasks: int) -> Tape:
    """Run ``simulate`` with buffers for the columns of a tape, with larger ones if the spikes do not fit, and pack them.

    ``simulate`` returns how many spikes each sample has, or -1 where a potential is not finite. The samples of a task write
    to one row of the buffers, one behind the other, with room for four spikes per neuron in the first and one in the others.
    """
    room = 64 + (3 + -(-batch // max(tasks, 1))) * neurons
    bounds, _ = samples_of(np.arange(tasks), tasks, batch)
    with threads():
        while True:
            columns = _columns(tasks, room, dtype)
            counts = simulate(*columns)
            largest = int(counts.max(initial=0))
            check_finite(counts.min(initial=0) >= 0)
            check_spike_count(largest)
            needed = int(np.add.reduceat(counts, bounds).max()) if tasks else 0
            if needed <= room:
                break
            room = needed
        packed = _columns(batch, largest, dtype)
        pack(counts, *columns, *packed)
    return Tape(*map(torch.from_numpy, packed))


def _columns(batch: int, spikes: int, dtype: np.dtype) -> list[np.ndarray]:
    """Uninitialised time, neuron, slope and after of a tape."""
    return [np.empty((batch, spikes), kind) for kind in (dtype, np.int64, dtype, np.int64)]


@inlined
def time_to_threshold(v, i, tau_mem, tau_syn, v_th):
    """How long the parabola that V follows now takes to the threshold; NaN if V does not rise or the parabola misses it."""
    gap, rise = v_th - v, slope(i, v, tau_mem)
    bend = (i / tau_syn + rise) / tau_mem  # -V''
    return 2.0 * gap / (rise + math.sqrt(rise * rise - 2.0 * bend * gap)) if rise > 0.0 else np.nan


@inlined
def first_guess(v, i, v_end, horizon, tau_mem, tau_syn, v_th):
    """The time to the threshold for a V that ends above it: on the parabola that V follows now, bent by one Newton step to
    the cubic that also ends at ``v_end``."""
    step, rise = time_to_threshold(v, i, tau_mem, tau_syn, v_th), slope(i, v, tau_mem)
    bend = (i / tau_syn + rise) / tau_mem
    cubic = (v_end - v - horizon * (rise - 0.5 * bend * horizon)) / (horizon * horizon * horizon)
    return step - cubic * step * step * step / (rise - step * (bend - 3.0 * cubic * step))


@inlined
def quick_crossing(v, i, v_end, horizon, tau_mem, tau_syn, v_th):
    """``next_crossing`` of a V that starts below and ends above the threshold, where one step after the first guess is
    enough; NaN elsewhere. Without branches, for many neurons at once."""
    guess = min(max(first_guess(v, i, v_end, horizon, tau_mem, tau_syn, v_th), 0.0), horizon)
    a, s, phi = decay(guess, tau_mem, tau_syn)
    v_now, i_now = flow(v, i, a, s, phi)
    step = time_to_threshold(v_now, i_now, tau_mem, tau_syn, v_th)
    dt = guess + step
    sure = is_exact(step, i_now, tau_mem, tau_syn, v_th) & (v < v_th) & (v_end >= v_th) & (dt >= 0.0) & (dt <= horizon)
    return dt if sure else np.nan


@inlined
def is_exact(step, size, tau_mem, tau_syn, allowed):
    """Whether only rounding is left after a ``step`` on the parabola, of a state of that ``size``, against ``allowed``."""
    x = abs(step) / (EXACT * min(tau_mem, tau_syn))
    return x * x * x * size <= allowed


@jit
def next_crossing(v, i, v_end, i_end, horizon, tau_mem, tau_syn, v_th):
    """The first dt in [0, horizon] with V(dt) = v_th while rising (eq. 2), or NEVER; (v_end, i_end) is the state at
    the horizon, which may have vanished: the peak is found from the state now."""
    if i <= v_th or v >= v_th:  # I only falls and a peak has V = I; V starts on the threshold only by rounding
        return 0.0 if i > v and v >= v_th else NEVER
    high = horizon
    if v_end < v_th:
        if i_end >= v_th:  # still rising: no peak inside
            return NEVER
        high = peak_time(v, i, tau_mem, tau_syn)
        if high >= horizon or i * exp(-high / tau_syn) < v_th:  # V = I at the peak
            return NEVER

    return follow_to_threshold(v, i, v_end, horizon, high, tau_mem, tau_syn, v_th)


@jit
def follow_to_threshold(v, i, v_end, horizon, high, tau_mem, tau_syn, v_th):
    """The dt in [0, high] with V(dt) = v_th, for a V that starts below and is not below at ``high``: on the local parabola,
    again and again, kept inside [low, high], where V(low) < v_th <= V(high)."""
    low = dt = 0.0
    v_now, i_now = v, i
    for trial in range(100):
        if trial == 0 and v_end >= v_th:
            step = first_guess(v, i, v_end, horizon, tau_mem, tau_syn, v_th)
        else:
            step = time_to_threshold(v_now, i_now, tau_mem, tau_syn, v_th)
        if not dt + step >= low:  # NaN, or a bad guess
            following = 0.5 * (low + high)
        else:
            following = min(dt + step, high)
            if is_exact(following - dt, abs(i_now) + abs(v_now), tau_mem, tau_syn, max(abs(v), abs(v_th))):
                return following
        dt = following
        a, s, phi = decay(dt, tau_mem, tau_syn)
        v_now, i_now = flow(v, i, a, s, phi)
        if v_now < v_th:
            low = dt
        else:
            high = dt
    return dt


@jit
def sort_by_time(time, neuron, slopes):
    """Sort the spikes of one interval in place by time, those of equal times by neuron (Shell sort: few as they mostly are,
    it is an insertion sort)."""
    gap = 1
    while gap < len(time) // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for end in range(gap, len(time)):
            t, n, d = time[end], neuron[end], slopes[end]
            k = end
            while k >= gap and (time[k - gap] > t or (time[k - gap] == t and neuron[k - gap] > n)):
                time[k], neuron[k], slopes[k] = time[k - gap], neuron[k - gap], slopes[k - gap]
                k -= gap
            time[k], neuron[k], slopes[k] = t, n, d
        gap //= 3


@jit
def advance(v, i, row, v_end, i_end, can_cross, a, s, phi, v_th):
    """An arrival at all neurons, their flow over the stretch after it, and which of them can cross the threshold in it.

    At a peak V = I, by eq. (1), so that x later V is (a(x) + phi(x)) times the peak, by eq. (6). That falls with x: a V that
    ends the stretch below (a + phi) v_th had no peak above v_th. Few others pass; they are searched in vain, as are all after
    a stretch so long that the states at its end have no digits left to compare.
    """
    rest = a + phi
    least = ROUNDING * rest * v_th if min(rest, rest * v_th) > TINY else -np.inf
    for n in range(len(v)):
        v_n, i_n = flow(v[n], i[n] + row[n], a, s, phi)
        v_end[n], i_end[n] = v_n, i_n
        can_cross[n] = v_n >= least


@jit
def simulate(time, index, weight_t, out_time, out_neuron, out_slope, out_after, tau_mem, tau_syn, v_th, t_end):
    """One sample: write its spikes to ``out_*``, ordered by time, and return how many there are (more than fit in
    ``out_*``: only counted), or -1 if a potential is not finite."""
    real = weight_t.dtype.type
    width, capacity = weight_t.shape[1], len(out_time)
    v, i = np.zeros(width), np.zeros(width)
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
        candidates = 0
        for eight in range(len(can_cross_by_eight)):
            if can_cross_by_eight[eight] != 0:
                for n in range(8 * eight, 8 * eight + 8):
                    candidate[candidates] = n
                    candidates += can_cross[n]
        for c in range(candidates):
            n = candidate[c]
            v_from[c], i_from[c], v_to[c] = v[n], i[n] + row[n], v_end[n]
        for c in range(-(-candidates // LANES) * LANES):
            crossing[c] = quick_crossing(v_from[c], i_from[c], v_to[c], horizon, tau_mem, tau_syn, v_th)
        for c in range(candidates):
            n, dt = candidate[c], crossing[c]
            v_n, i_n, v_stop, at = v_from[c], i_from[c], v_to[c], 0.0
            if not i_n < np.inf:
                return -1
            if math.isnan(dt):
                dt = next_crossing(v_n, i_n, v_stop, i_end[n], horizon, tau_mem, tau_syn, v_th)
            while dt != NEVER:
                at = min(at + dt, horizon)
                i_n *= exp(-dt / tau_syn)
                v_n = 0.0  # eq. (3)
                if spikes < capacity:
                    out_time[spikes] = min(real(now + at), until)
                    out_neuron[spikes] = n
                    # a crossing whose slope is lost to rounding still has a finite gradient
                    out_slope[spikes] = max(slope(i_n, v_th, tau_mem), 1e-16 * v_th / tau_mem)
                    out_after[spikes] = e - 1
                spikes += 1
                if spikes > MAX_SPIKES_PER_SAMPLE:
                    return spikes
                v_stop -= v_th * exp(-(horizon - at) / tau_mem)  # eq. (3), seen from the end of the stretch
                dt = next_crossing(v_n, i_n, v_stop, i_end[n], horizon - at, tau_mem, tau_syn, v_th)
            v_end[n] = v_stop
        if begin + 1 < spikes <= capacity:
            sort_by_time(out_time[begin:spikes], out_neuron[begin:spikes], out_slope[begin:spikes])
        v, v_end = v_end, v
        i, i_end = i_end, i
    return spikes if is_finite(v) and is_finite(i) else -1


@inlined
def samples_of(task, tasks, batch):
    """The first sample of a task, and the one after its last."""
    return task * batch // tasks, (task + 1) * batch // tasks


@jit(parallel=True)
def simulate_batch(time, index, weight_t, out_time, out_neuron, out_slope, out_after, tau_mem, tau_syn, v_th, t_end):
    batch, (tasks, room) = len(time), out_time.shape
    counts = np.zeros(batch, np.int64)
    for task in numba.prange(tasks):
        first, stop = samples_of(task, tasks, batch)
        place = 0
        for b in range(first, stop):
            counts[b] = simulate(
                time[b], index[b], weight_t,
                out_time[task, place:], out_neuron[task, place:], out_slope[task, place:], out_after[task, place:],
                tau_mem, tau_syn, v_th, t_end,
            )  # fmt: skip
            place = min(place + max(counts[b], 0), room)
    return counts


@jit(parallel=True)
def pack(counts, time, neuron, slopes, after, out_time, out_neuron, out_slope, out_after):
    """Copy the ``counts`` spikes of each sample to a row of its own, and pad it."""
    batch, tasks = len(counts), len(time)
    for task in numba.prange(tasks):
        first, stop = samples_of(task, tasks, batch)
        place = 0
        for b in range(first, stop):
            n = counts[b]
            end = place + n
            out_time[b, :n], out_neuron[b, :n] = time[task, place:end], neuron[task, place:end]
            out_slope[b, :n], out_after[b, :n] = slopes[task, place:end], after[task, place:end]
            out_time[b, n:], out_neuron[b, n:], out_slope[b, n:], out_after[b, n:] = np.inf, -1, np.inf, -1
            place = end
