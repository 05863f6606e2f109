"""Layers whose synapses have delays of their own: each neuron receives the arrivals at other times, and in another order.

Without resets a layer is linear in what arrives. So time is cut into blocks, much shorter than both time constants, and each
arrival adds its effect at the end of the block in which it is delivered to a ring of blocks to come. A block that may hold a
crossing, by eq. (15), is walked again for that neuron alone, from delivery to delivery, in order.

The length of a block L is a power of two, so that the numbers of blocks and what is left of times are exact. A delay is
D L + r, 0 <= r < L, and an arrival comes at (T + f) L, 0 <= f < 1. It is delivered in block T + D, or in the next one if it is
late, r >= (1 - f) L. At the time x after t + D L, an input w through that delay has the effect

    psc = s(x) w s(-r)        psp = a(x) w phi(-r) + phi(x) w s(-r),

with coefficients of one synapse for all arrivals, and of one arrival for all synapses; L is so short that no digits are lost.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, R blocks in a ring.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from eventprop.core.neuron import crossing_slope, decay, flow, least_after_crossing, remaining_reset, rewind

from ...arguments import Arrivals, Constants
from ...chunks import part_of
from ...compilation.exponential import exp
from ...compilation.jit import arrays, is_finite, jit, threads
from ...crossing import NEVER, next_crossing
from ...emission import record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import TINY, arrivals_before, input_major, list_candidates

FRACTION = 1.0 / 8.0  # of the shorter time constant: the longest block
MOST_BLOCKS, MOST_CELLS = 2**12, 2**22  # of the longest delay; these times neurons
MOST_NUMBER = 2.0**50  # of a block: such numbers and their neighbours are exact
ROUNDING = 1.0 - 1e-6  # of float32, so that no crossing is lost to it
TASKS = 64  # most tasks of a forward pass


class Grid(NamedTuple):
    """The blocks of time."""

    length: float  # L in ms, a power of two
    blocks: int  # R: of the longest delay, and the one that is late


class Synapses(NamedTuple):
    """What each synapse makes of an arrival; [M, N] each."""

    place: np.ndarray  # (2 D + sign) N + n: where in a ring [R, 2, N], signs apart, from the block of the arrival on
    rest: np.ndarray  # r
    psp: np.ndarray  # w phi(-r)
    psc: np.ndarray  # w s(-r)


class Wiring(NamedTuple):
    """By neuron, as walks of one neuron read them; [N, M] each."""

    weight: np.ndarray
    delay: np.ndarray


def grid_of(time: Tensor, delay: Tensor, neurons: Tensor, t_end: float, learns: bool) -> Grid | None:
    """The blocks for these delays [N, M] of at least 0, or None: for ``neurons`` [N, 5], as ``LearnableLIF.table``, that are
    not plain and all alike, or learn their time constants, or where there would be too many blocks."""
    if learns or not neurons.numel() or (neurons != neurons[0]).any() or neurons[0, 3:].any():
        return None
    length = 2.0 ** math.floor(math.log2(FRACTION * float(neurons[0, :2].min())))
    longest = float(delay.max()) / length if delay.numel() else 0.0
    earliest = float(time.min()) if time.numel() else 0.0
    blocks = math.floor(longest) + 2
    if blocks > MOST_BLOCKS or blocks * len(delay) > MOST_CELLS or max(t_end, -earliest) / length > MOST_NUMBER:
        return None
    return Grid(length, blocks)


def forward(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, grid: Grid, t_end: float
) -> tuple[Tape, Tensor]:
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight`` [N, M], each synapse
    after its ``delay`` [N, M], and nothing that is kept of them. A spike's ``after`` is the last arrival that its neuron got
    before it in the same block, or -1."""
    arrivals, wiring, constants = Arrivals(*arrays(time, index)), Wiring(*arrays(weight, delay)), constants_of(neurons)
    with threads():
        synapses = synapses_of(*arrays(input_major(weight), input_major(delay)), constants, grid.length)
    return recorded(
        lambda out, _: simulate_batch(arrivals, wiring, synapses, out, constants, grid, t_end),
        len(time),
        len(weight),
        arrivals.time.dtype,
        min(len(time), TASKS),
    )


def constants_of(neurons: Tensor) -> Constants:
    """Of neurons that are all alike."""
    return Constants(*neurons[0, :3].tolist())


@jit(parallel=True)
def synapses_of(weight_t, delay_t, constants, length):
    """The ``Synapses`` with these weights and delays [M, N]."""
    (tau_mem, tau_syn, _), (inputs, width), real = constants, weight_t.shape, weight_t.dtype
    place, rest = np.empty((inputs, width), np.int32), np.empty((inputs, width), real)
    psp, psc = np.empty((inputs, width), real), np.empty((inputs, width), real)
    for m in numba.prange(inputs):
        for n in range(width):
            w, d = np.float64(weight_t[m, n]), np.float64(delay_t[m, n])
            whole = math.floor(d / length)
            r = d - whole * length
            a, s, phi = decay(r, tau_mem, tau_syn)
            place[m, n], rest[m, n] = (2 * np.int64(whole) + (w < 0.0)) * width + n, r
            psp[m, n], psc[m, n] = rewind(0.0, w, a, s, phi)
    return Synapses(place, rest, psp, psc)


@jit
def blocks_of(time, length):
    """The block of each arrival, and the time since its begin."""
    block, since = np.empty(len(time), np.int64), np.empty(len(time))
    for e in range(len(time)):
        t = np.float64(time[e])
        number = math.floor(t / length)
        block[e], since[e] = np.int64(number), t - number * length
    return block, since


@jit
def deliver(psp, psc, base, since, place, rest, unit_psp, unit_psc, length, tau_mem, tau_syn, where, x):
    """Add an arrival, the time ``since`` after the begin of its block, to what all neurons receive at the end of each block of
    the ring, ``psp`` and ``psc`` [R 2 N] from the number ``base`` on."""
    real, width, cells = x.dtype.type, len(x), len(psp)
    limit, late_step = real(length - since), 2 * width
    a, s, phi = decay(length - since, tau_mem, tau_syn)
    a_late, s_late, phi_late = decay(2.0 * length - since, tau_mem, tau_syn)
    a, s, phi, a_late, s_late, phi_late = real(a), real(s), real(phi), real(a_late), real(s_late), real(phi_late)
    for n in range(width):
        at = base + place[n] + (late_step if rest[n] >= limit else 0)
        where[n] = at - (cells if at >= cells else 0)
    for n in range(width):
        late = rest[n] >= limit
        x[n] = (a_late if late else a) * unit_psp[n] + (phi_late if late else phi) * unit_psc[n]
    for n in range(width):
        psp[where[n]] += x[n]
    for n in range(width):
        x[n] = (s_late if rest[n] >= limit else s) * unit_psc[n]
    for n in range(width):
        psc[where[n]] += x[n]


@jit
def advance(v, i, psp, psc, v_end, i_end, can_cross, a, s, phi, v_th):
    """The flow of all neurons over a block in which they receive ``psp`` and ``psc`` [2 N], excitation first, and which of them
    can cross the threshold in it: after a crossing, V ends no lower than by eq. (15) with all of the inhibition."""
    rest, width = a + phi, len(v)
    least = ROUNDING * least_after_crossing(a, phi, v_th) if min(rest, rest * v_th) > TINY else -np.inf
    for n in range(width):
        v_end[n] = a * v[n] + phi * i[n] + psp[n] + psp[width + n]
    for n in range(width):
        i_end[n] = s * i[n] + psc[n] + psc[width + n]
    for n in range(width):
        can_cross[n] = v_end[n] - psp[width + n] >= least


@jit
def delivered(n, k, first, last, index, block, since, wiring, length, real, out_since, out_source):
    """The arrivals from ``first`` to ``last``, inclusive, that neuron ``n`` gets in block ``k``, in order: when after the begin
    of the block, and which. Returns how many."""
    delay, count = wiring.delay[n], 0
    for e in range(first, last + 1):
        d = np.float64(delay[index[e]])
        whole = math.floor(d / length)
        rest = d - whole * length
        late = rest >= np.float64(real(length - since[e]))
        if block[e] + np.int64(whole) + late != k:
            continue
        at, place = max(since[e] + rest - (length if late else 0.0), 0.0), count
        while place > 0 and out_since[place - 1] > at:
            out_since[place], out_source[place] = out_since[place - 1], out_source[place - 1]
            place -= 1
        out_since[place], out_source[place] = at, e
        count += 1
    return count


@jit
def walk(n, v, i, begin, until, since, source, count, index, weight, constants, out, spikes):
    """One neuron through a stretch, from delivery to delivery: write its spikes to the row ``out``
    behind ``spikes`` others, as ``forward.simulate``. Returns V and I at the end, and how many spikes there are."""
    (tau_mem, tau_syn, v_th), real, horizon, now, after = constants, out.time.dtype.type, until - begin, 0.0, -1
    for piece in range(count + 1):
        end = min(since[piece], horizon) if piece < count else horizon
        v_end, i_end = flow(v, i, *decay(end - now, tau_mem, tau_syn))
        dt = next_crossing(v, i, v_end, i_end, end - now, tau_mem, tau_syn, v_th)
        while dt != NEVER and i < np.inf and spikes <= MAX_SPIKES_PER_SAMPLE:
            now = min(now + dt, end)
            v, i = 0.0, i * exp(-dt / tau_syn)  # eq. (3)
            record(out, spikes, min(real(begin + now), real(until)), n, crossing_slope(i, v_th, tau_mem), after)
            spikes += 1
            v_end -= remaining_reset(end - now, v_th, tau_mem)
            dt = next_crossing(v, i, v_end, i_end, end - now, tau_mem, tau_syn, v_th)
        v, i, now = v_end, i_end, end
        if piece < count:
            after = source[piece]
            i += np.float64(weight[index[after]])
    return v, i, spikes


@jit
def simulate(time, index, wiring, synapses, out, constants, grid, t_end):
    """One sample, as ``forward.simulate``."""
    (tau_mem, tau_syn, v_th), (length, blocks), (place, rest, unit_psp, unit_psc) = constants, grid, synapses
    real, width = unit_psp.dtype.type, place.shape[1]
    time = time[: arrivals_before(time, t_end)]
    block, since = blocks_of(time, length)
    v, i, v_end, i_end = np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width)
    can_cross = np.zeros(-(-width // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    candidate = np.empty(len(can_cross) + 1, np.int64)
    psp, psc = np.zeros((blocks, 2 * width), real), np.zeros((blocks, 2 * width), real)
    where, x = np.empty(width, np.uint32), np.empty(width, real)
    at, source = np.empty(len(time)), np.empty(len(time), np.int64)
    a_block, s_block, phi_block = decay(length, tau_mem, tau_syn)
    spikes = e = oldest = 0
    k = pending = block[0] if len(time) else np.int64(MOST_NUMBER)
    while k * length < t_end:
        while e < len(time) and block[e] == k:
            row, base = index[e], (k % blocks) * 2 * width
            deliver(
                psp.reshape(-1), psc.reshape(-1), base, since[e], place[row], rest[row], unit_psp[row], unit_psc[row], length,
                tau_mem, tau_syn, where, x,
            )  # fmt: skip
            pending = k + blocks - 1
            e += 1
        while oldest < e and block[oldest] + blocks - 1 < k:
            oldest += 1
        begin, until, a, s, phi = k * length, (k + 1) * length, a_block, s_block, phi_block
        if pending < k:  # nothing is on its way: to the next arrival, or to the end
            until = block[e] * length if e < len(time) else t_end
            a, s, phi = decay(until - begin, tau_mem, tau_syn)
        slot = k % blocks
        advance(v, i, psp[slot], psc[slot], v_end, i_end, can_cross, a, s, phi, v_th)
        until = min(until, t_end)
        first = spikes
        for c in range(list_candidates(can_cross, can_cross_by_eight, candidate)):
            n = candidate[c]
            if not i[n] < np.inf:
                return spikes, False
            count = delivered(n, k, oldest, e - 1, index, block, since, wiring, length, real, at, source)
            v_end[n], i_end[n], spikes = walk(
                n, v[n], i[n], begin, until, at, source, count, index, wiring.weight[n], constants, out, spikes
            )
            if spikes > MAX_SPIKES_PER_SAMPLE:
                return spikes, True
        if first + 1 < spikes:
            sort_by_time(out, first, spikes)
        psp[slot], psc[slot] = 0.0, 0.0
        v, v_end, i, i_end = v_end, v, i_end, i
        k = k + 1 if pending >= k else (block[e] if e < len(time) else np.int64(MOST_NUMBER))
    return spikes, is_finite(v) and is_finite(i)


@jit(parallel=True)
def simulate_batch(arrivals, wiring, synapses, out, constants, grid, t_end):
    batch, (tasks, room) = len(arrivals.time), out.time.shape
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for task in numba.prange(tasks):
        first, stop = part_of(task, tasks, batch)
        place = 0
        for b in range(first, stop):
            row = row_of(out, task, place)
            counts[b], finite[b] = simulate(
                arrivals.time[b], arrivals.source[b], wiring, synapses, row, constants, grid, t_end
            )
            place = min(place + counts[b], room)
    return counts, finite
