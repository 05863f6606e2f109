"""The backward pass of ``delays``: the adjoint variables at the end of each block, from which each synapse reads its own.

Between own spikes p and q are closed forms. An arrival that comes at t through a delay D L + r adds to the gradients of that
synapse p and q at t + D L + r. These are, by eq. (8), coefficients of r times p and q at t + D L: so those are summed over all
arrivals, P and Q, and the coefficients of r applied in the end. p and q at t + D L follow, by coefficients of the arrival, from
those at the end of the block in which it is delivered, as if no spike came between; where one did, its jump is added.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, R blocks in a ring.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import adjoint_flow, arrival_time_gradient, decay, spike_jump

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.exponential import exp
from ...compilation.jit import arrays, jit, threads
from ...emission import Columns, row_of
from ...tape import Tape
from .common import arrivals_before, input_major
from .delays import Grid, Wiring, blocks_of, constants_of, delivered


class Synapses(NamedTuple):
    """What each synapse reads of p and q; [M, N] each."""

    place: np.ndarray  # D N + n: where in a ring of [R, N], seen from the block of the arrival
    rest: np.ndarray  # r
    by_p: np.ndarray  # dL/dt of an arrival by p and q at the time r before its delivery
    by_q: np.ndarray


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, tape: Tape, grad: Tensor, grid: Grid,
    t_end: float, need_time: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, delay, neurons) from ``grad`` [B, S] = dL/d(emitted time); the first is empty where not needed, the
    last 0."""
    arrivals, wiring, constants = Arrivals(*arrays(time, index)), Wiring(*arrays(weight, delay)), constants_of(neurons)
    chunks = max(1, min(len(time), backward_tasks(len(time))))
    shares = [np.zeros((chunks, *weight.t().shape), arrivals.time.dtype) for _ in "pq"]
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    with threads():
        synapses = synapses_of(*arrays(input_major(weight), input_major(delay)), constants, grid.length)
        adjoint_batch(
            arrivals, wiring, synapses, Columns(*arrays(*tape)), *arrays(grad), constants, grid, t_end, *shares, by_time
        )
        sums = map(weight_gradient, shares)
        by_weight, by_delay = gradients(*wiring, *arrays(*sums), constants, grid.length)
    by_synapse = torch.from_numpy(by_weight), torch.from_numpy(by_delay)
    return torch.from_numpy(by_time), *by_synapse, torch.zeros_like(neurons)


@jit(parallel=True)
def synapses_of(weight_t, delay_t, constants, length):
    """The ``Synapses`` with these weights and delays [M, N]."""
    (tau_mem, tau_syn, _), (inputs, width), real = constants, weight_t.shape, weight_t.dtype
    place, rest = np.empty((inputs, width), np.int32), np.empty((inputs, width), real)
    by_p, by_q = np.empty((inputs, width), real), np.empty((inputs, width), real)
    for m in numba.prange(inputs):
        for n in range(width):
            w, d = np.float64(weight_t[m, n]), np.float64(delay_t[m, n])
            whole = np.floor(d / length)
            r = d - whole * length
            place[m, n], rest[m, n] = np.int64(whole) * width + n, r
            coefficients = decay(r, tau_mem, tau_syn)
            by_p[m, n] = arrival_time_gradient(*at_delivery(1.0, 0.0, coefficients), w, tau_mem, tau_syn)
            by_q[m, n] = arrival_time_gradient(*at_delivery(0.0, 1.0, coefficients), w, tau_mem, tau_syn)
    return Synapses(place, rest, by_p, by_q)


@jit
def at_delivery(p, q, coefficients):
    """Eq. (8) solved for p and q after the interval that the ``coefficients`` describe, from those before it."""
    a, s, phi = coefficients
    p = p / a
    return p, (q - phi * p) / s


@jit(parallel=True)
def gradients(weight, delay, sum_p, sum_q, constants, length):
    """dL/dweight and dL/ddelay from P and Q; [N, M] each."""
    tau_mem, tau_syn, _ = constants
    by_weight, by_delay = np.empty_like(weight), np.empty_like(weight)
    for n in numba.prange(len(weight)):
        for m in range(weight.shape[1]):
            d = np.float64(delay[n, m])
            coefficients = decay(d - np.floor(d / length) * length, tau_mem, tau_syn)
            p, q = at_delivery(np.float64(sum_p[n, m]), np.float64(sum_q[n, m]), coefficients)
            by_weight[n, m] = q
            by_delay[n, m] = arrival_time_gradient(p, q, np.float64(weight[n, m]), tau_mem, tau_syn)
    return by_weight, by_delay


@jit
def jumps_of(tape, grad, spikes, width, tau_mem, v_th):
    """By how much p jumps at each spike, eq. (9): between its spikes, p of a neuron knows of nothing else."""
    jump, p, at = np.empty(spikes), np.zeros(width), np.full(width, np.inf)
    for k in range(spikes - 1, -1, -1):
        n, t = tape.neuron[k], np.float64(tape.time[k])
        p_after = p[n] * exp(-(at[n] - t) / tau_mem)
        jump[k] = spike_jump(p_after, np.float64(grad[k]), np.float64(tape.slope[k]), v_th, tau_mem)
        p[n], at[n] = p_after + jump[k], t
    return jump


@jit
def collect(ring_p, ring_q, base, since, place, rest, sum_p, sum_q, by_p, by_q, length, tau_mem, tau_syn, where, x, y):
    """Add to P and Q of the synapses of one arrival, the time ``since`` after the begin of its block, where the ring
    [R N] begins with the number ``base``. Returns dL/dt, or 0 if ``by_p`` is empty."""
    real, width, cells = x.dtype.type, len(x), len(ring_p)
    limit = real(length - since)
    a, s, phi = decay(length - since, tau_mem, tau_syn)
    a_late, s_late, phi_late = decay(2.0 * length - since, tau_mem, tau_syn)
    a, s, phi, a_late, s_late, phi_late = real(a), real(s), real(phi), real(a_late), real(s_late), real(phi_late)
    for n in range(width):
        at = base + place[n] + (width if rest[n] >= limit else 0)
        where[n] = at - (cells if at >= cells else 0)
    for n in range(width):
        x[n] = ring_p[where[n]]
    for n in range(width):
        y[n] = ring_q[where[n]]
    for n in range(width):
        sum_p[n] += (a_late if rest[n] >= limit else a) * x[n]
    for n in range(width):
        late = rest[n] >= limit
        sum_q[n] += (s_late if late else s) * y[n] + (phi_late if late else phi) * x[n]
    total = real(0.0)
    for n in range(len(by_p)):
        late = rest[n] >= limit
        p_n, q_n = adjoint_flow(x[n], y[n], a_late if late else a, s_late if late else s, phi_late if late else phi)
        total += by_p[n] * p_n + by_q[n] * q_n
    return total


@jit
def adjoint_sample(time, index, wiring, synapses, tape, grad, constants, grid, t_end, sum_p, sum_q, grad_time):
    """Walk one sample backwards, block by block: add to P and Q [M, N], and write dL/dt of each arrival to ``grad_time`` [K]
    unless it is empty."""
    (tau_mem, tau_syn, v_th), (length, blocks), (place, rest, by_p, by_q) = constants, grid, synapses
    spikes = np.searchsorted(tape.time, np.inf)
    if spikes == 0:
        return
    real, width, no_row = by_p.dtype.type, place.shape[1], by_p[0, :0]
    time = time[: arrivals_before(time, t_end)]
    block, since = blocks_of(time, length)
    jump = jumps_of(tape, grad, spikes, width, tau_mem, v_th)
    p, q = np.zeros(width), np.zeros(width)
    ring_p, ring_q = np.zeros((blocks, width), real), np.zeros((blocks, width), real)
    where, x, y = np.empty(width, np.uint32), np.empty(width, real), np.empty(width, real)
    at, source = np.empty(len(time)), np.empty(len(time), np.int64)
    a_block, s_block, phi_block = decay(length, tau_mem, tau_syn)
    last, e = spikes - 1, len(time) - 1
    k = np.int64(np.floor(np.float64(tape.time[last]) / length))
    while e >= 0 and block[e] > k:
        e -= 1
    oldest = e + 1
    while e >= 0:  # p and q are those at the end of block k
        a, s, phi, begin = a_block, s_block, phi_block, k
        idle = block[e] + blocks <= k  # nothing is delivered: back to where something is
        if idle:
            begin = block[e] + blocks
            a, s, phi = decay((k + 1 - begin) * length, tau_mem, tau_syn)
        else:
            for n in range(width):
                ring_p[k % blocks, n] = p[n]
            for n in range(width):
                ring_q[k % blocks, n] = q[n]
        for n in range(width):
            p[n], q[n] = adjoint_flow(p[n], q[n], a, s, phi)
        while oldest > 0 and block[oldest - 1] + blocks > k:
            oldest -= 1
        while last >= 0 and np.float64(tape.time[last]) >= begin * length:
            n, t = tape.neuron[last], np.float64(tape.time[last]) - begin * length
            p_n, q_n = adjoint_flow(jump[last], 0.0, *decay(t, tau_mem, tau_syn))
            p[n] += p_n
            q[n] += q_n
            if not idle and tape.after[last] >= 0:
                add_jump(
                    n, k, t, jump[last], tape.after[last], oldest, e, index, block, since, wiring, length, real, at, source,
                    tau_mem, tau_syn, sum_p, sum_q, grad_time,
                )  # fmt: skip
            last -= 1
        k = begin
        while e >= 0 and block[e] == k:
            row, base = index[e], (k % blocks) * width
            total = collect(
                ring_p.reshape(-1), ring_q.reshape(-1), base, since[e], place[row], rest[row], sum_p[row], sum_q[row],
                by_p[row] if len(grad_time) else no_row, by_q[row] if len(grad_time) else no_row, length, tau_mem, tau_syn,
                where, x, y,
            )  # fmt: skip
            if len(grad_time):
                grad_time[e] += total
            e -= 1
        k -= 1


@jit
def add_jump(
    n, k, t, jump, after, first, last, index, block, since, wiring, length, real, at, source, tau_mem, tau_syn, sum_p, sum_q,
    grad_time,
):  # fmt: skip
    """Add the ``jump`` of p at the spike of neuron ``n``, the time ``t`` after the begin of block ``k``, to what those arrivals
    read that the neuron got in that block before, the last of them ``after``."""
    count = delivered(n, k, first, last, index, block, since, wiring, length, real, at, source)
    before = 0
    while before < count and source[before] != after:
        before += 1
    for j in range(before + 1 if before < count else 0):
        m = index[source[j]]
        d = np.float64(wiring.delay[n, m])
        rest = d - np.floor(d / length) * length
        ago = max(t - at[j], 0.0)
        p, q = adjoint_flow(jump, 0.0, *decay(ago + rest, tau_mem, tau_syn))
        sum_p[m, n] += p
        sum_q[m, n] += q
        if len(grad_time):
            p, q = adjoint_flow(jump, 0.0, *decay(ago, tau_mem, tau_syn))
            grad_time[source[j]] += arrival_time_gradient(p, q, np.float64(wiring.weight[n, m]), tau_mem, tau_syn)


@jit(parallel=True)
def adjoint_batch(arrivals, wiring, synapses, tape, grad, constants, grid, t_end, sums_p, sums_q, grad_time):
    """A task is a chunk of samples; ``sums_p`` and ``sums_q`` [chunks, M, N] are what the chunks give to P and Q."""
    batch, chunks = len(arrivals.time), len(sums_p)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], wiring, synapses, row_of(tape, b, 0), grad[b], constants, grid, t_end,
                sums_p[chunk], sums_q[chunk], grad_time[b],
            )  # fmt: skip
