"""The event-driven solver on the CPU: numba kernels, one sample or one block of neurons per task.

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

from ..neuron import (
    LIF,
    adjoint_flow,
    arrival_time_gradient,
    decay,
    flow,
    integrated_psp,
    peak_time,
    slope,
    spike_jump,
)
from .jit import config, jit
from .tape import MAX_SPIKES_PER_SAMPLE, Maximum, Tape, check_finite, check_spike_count

ADJOINT_BLOCK = 96  # most neurons per backward task
ADJOINT_TASKS = 4  # fewest backward tasks; fixed, so that sums do not depend on the number of threads
NEVER = -1.0


@jit
def next_crossing(v, i, v_end, i_end, horizon, tau_mem, tau_syn, v_th):
    """The first dt in [0, horizon] with V(dt) = v_th while rising (eq. 2), or NEVER; (v_end, i_end) is the state at
    the horizon."""
    if i <= v_th or v >= v_th:  # I only falls and a peak has V = I; V starts on the threshold only by rounding
        return 0.0 if i > v and v >= v_th else NEVER
    high = horizon
    if v_end < v_th:
        if i_end >= v_end:  # still rising: no peak inside
            return NEVER
        high = peak_time(v, i, tau_mem, tau_syn)
        if i * math.exp(-high / tau_syn) < v_th:  # V = I at the peak
            return NEVER

    # Follow the local parabola to the threshold, again and again: each step cubes the error. It is kept inside
    # [low, high], where V(low) < v_th <= V(high). The step that is small enough for its error (d/tau)^3 to be lost in
    # rounding is the last one.
    low = dt = 0.0
    v_now, i_now = v, i
    exact = 1e-5 * min(tau_mem, tau_syn)
    for _ in range(100):
        gap = v_th - v_now
        rise = slope(i_now, v_now, tau_mem)
        bend = (i_now / tau_syn + rise) / tau_mem  # -V''
        root = rise * rise - 2.0 * bend * gap
        following = dt + 2.0 * gap / (rise + math.sqrt(root)) if rise > 0.0 and root >= 0.0 else -1.0
        if not low <= following <= high:
            following = 0.5 * (low + high)
        if abs(following - dt) <= exact:
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
    """Sort the spikes of one interval in place; they come by neuron."""
    if len(time) <= 32:
        for end in range(1, len(time)):
            t, n, d = time[end], neuron[end], slopes[end]
            k = end
            while k > 0 and time[k - 1] > t:
                time[k], neuron[k], slopes[k] = time[k - 1], neuron[k - 1], slopes[k - 1]
                k -= 1
            time[k], neuron[k], slopes[k] = t, n, d
    else:
        order = np.argsort(time, kind="mergesort")
        time[:], neuron[:], slopes[:] = time[order], neuron[order], slopes[order]


@jit
def add_arrivals(i, time, index, weight_t, first):
    """Add to I the weights of all arrivals at the time of arrival ``first`` (eq. 4); return the arrival after them."""
    e = first
    while e < len(time) and time[e] == time[first]:
        row = weight_t[index[e]]
        for n in range(len(i)):
            i[n] += row[n]
        e += 1
    return e


@jit
def is_finite(state):
    """Written as a comparison: reordered sums would turn the x - x of np.isfinite into 0."""
    return abs(state.sum()) < np.inf


@jit
def arrivals_before(time, t_end):
    return np.searchsorted(time, t_end)


@jit
def advance(v, i, v_end, i_end, can_cross, a, s, phi, threshold):
    """Flow of all neurons over one stretch, and which of them can cross the threshold in it (section of eq. 7: V ends
    above it, or I starts above it and V is past its peak at the end)."""
    for n in range(len(v)):
        v_n, i_n = flow(v[n], i[n], a, s, phi)
        v_end[n], i_end[n] = v_n, i_n
        can_cross[n] = (v_n >= threshold) | ((i[n] >= threshold) & (i_n < v_n))


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
    time = time[: arrivals_before(time, t_end)]
    spikes = e = 0
    while e < len(time):
        now = time[e]
        e = add_arrivals(i, time, index, weight_t, e)
        until = time[e] if e < len(time) else real(t_end)
        horizon = np.float64(until) - np.float64(now)
        a, s, phi = decay(horizon, tau_mem, tau_syn)
        advance(v, i, v_end, i_end, can_cross, a, s, phi, v_th)
        begin = spikes
        for eight in range(len(can_cross_by_eight)):
            if can_cross_by_eight[eight] == 0:
                continue
            for n in range(8 * eight, 8 * eight + 8):
                if not can_cross[n]:
                    continue
                v_n, i_n, v_stop, at = v[n], i[n], v_end[n], 0.0
                if not i_n < np.inf:
                    return -1
                while True:
                    dt = next_crossing(v_n, i_n, v_stop, i_end[n], horizon - at, tau_mem, tau_syn, v_th)
                    if dt == NEVER:
                        break
                    at = min(at + dt, horizon)
                    i_n *= math.exp(-dt / tau_syn)
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
                    v_stop -= v_th * math.exp(-(horizon - at) / tau_mem)  # eq. (3), seen from the end of the stretch
                v_end[n] = v_stop
        if begin < spikes <= capacity:
            sort_by_time(out_time[begin:spikes], out_neuron[begin:spikes], out_slope[begin:spikes])
        v, v_end = v_end, v
        i, i_end = i_end, i
    return spikes if is_finite(v) and is_finite(i) else -1


@jit(parallel=True)
def simulate_batch(time, index, weight_t, out_time, out_neuron, out_slope, out_after, tau_mem, tau_syn, v_th, t_end):
    counts = np.zeros(len(time), np.int64)
    for b in numba.prange(len(time)):
        counts[b] = simulate(
            time[b], index[b], weight_t, out_time[b], out_neuron[b], out_slope[b], out_after[b],
            tau_mem, tau_syn, v_th, t_end,
        )  # fmt: skip
    return counts


@jit
def pack(counts, time, neuron, slopes, after, out_time, out_neuron, out_slope, out_after):
    """Copy rows with ``counts`` spikes to narrower ones, and pad them."""
    for b in range(len(counts)):
        n = counts[b]
        out_time[b, :n], out_neuron[b, :n] = time[b, :n], neuron[b, :n]
        out_slope[b, :n], out_after[b, :n] = slopes[b, :n], after[b, :n]
        out_time[b, n:], out_neuron[b, n:], out_slope[b, n:], out_after[b, n:] = np.inf, -1, np.inf, -1


@jit(parallel=True)
def average_batch(time, index, received, tau_mem, tau_syn, t_end):
    """Add to ``received`` [B, M] the time average over [0, t_end] of the PSPs of each input, for weight 1."""
    for b in numba.prange(len(time)):
        for e in range(arrivals_before(time[b], t_end)):
            received[b, index[b, e]] += integrated_psp(t_end - np.float64(time[b, e]), tau_mem, tau_syn) / t_end


@jit(parallel=True)
def average_adjoint_batch(time, index, grad, grad_time, tau_mem, tau_syn, t_end):
    """dL/dtime [B, K] from ``grad`` [B, M] = dL/dreceived: the derivative of eq. (12) is phi."""
    for b in numba.prange(len(time)):
        for e in range(arrivals_before(time[b], t_end)):
            phi = decay(t_end - np.float64(time[b, e]), tau_mem, tau_syn)[2]
            grad_time[b, e] = -grad[b, index[b, e]] * phi / t_end


@jit
def find_maximum(time, index, weight_t, best, best_time, best_after, best_arrival, best_slope, tau_mem, tau_syn, t_end):
    """One sample: the maximum of each potential without threshold; see ``Maximum``. True if all is finite."""
    width = weight_t.shape[1]
    v, i = np.zeros(width), np.zeros(width)
    time = time[: arrivals_before(time, t_end)]
    e = 0
    while e < len(time):
        now = np.float64(time[e])
        e = add_arrivals(i, time, index, weight_t, e)
        until = np.float64(time[e]) if e < len(time) else t_end
        a, s, phi = decay(until - now, tau_mem, tau_syn)
        for n in range(width):
            v_end, i_end = flow(v[n], i[n], a, s, phi)
            if i[n] > v[n] and i[n] > best[n]:
                if i_end < v_end:  # the peak lies inside
                    dt = peak_time(v[n], i[n], tau_mem, tau_syn)
                    a_n, s_n, phi_n = decay(dt, tau_mem, tau_syn)
                    peak = flow(v[n], i[n], a_n, s_n, phi_n)[0]
                    if peak > best[n]:
                        best[n], best_time[n], best_after[n] = peak, now + dt, e - 1
                        best_arrival[n], best_slope[n] = -1, 0.0
                elif v_end > best[n]:  # V still rises when the next arrival, or the end of the window, comes
                    best[n], best_time[n], best_after[n] = v_end, until, e - 1
                    best_arrival[n] = e if e < len(time) else -1
                    best_slope[n] = slope(i_end, v_end, tau_mem)
            v[n], i[n] = v_end, i_end
    return is_finite(v) and is_finite(i)


@jit(parallel=True)
def find_maximum_batch(
    time, index, weight_t, best, best_time, best_after, best_arrival, best_slope, tau_mem, tau_syn, t_end
):
    finite = np.zeros(len(time), np.bool_)
    for b in numba.prange(len(time)):
        finite[b] = find_maximum(
            time[b], index[b], weight_t, best[b], best_time[b], best_after[b], best_arrival[b], best_slope[b],
            tau_mem, tau_syn, t_end,
        )  # fmt: skip
    return finite


@jit
def interval_decay(time, t_end, tau_mem, tau_syn, out):
    """The coefficients of eq. (5) for the stretch from each arrival to the next one (or t_end)."""
    for e in range(arrivals_before(time, t_end)):
        until = np.float64(time[e + 1]) if e + 1 < len(time) and time[e + 1] < t_end else t_end
        out[e, 0], out[e, 1], out[e, 2] = decay(until - np.float64(time[e]), tau_mem, tau_syn)


@jit
def adjoint_sample(
    time, index, weight_t, coefficients, out_time, out_neuron, out_slope, out_after, grad, first, stop,
    grad_weight, grad_time, tau_mem, tau_syn, v_th, t_end,
):  # fmt: skip
    """Walk one sample backwards for the neurons [first, stop): add to ``grad_weight`` [M, N] unless it is empty, and
    write their share of dL/dt of each arrival to ``grad_time`` [K] unless it is empty."""
    width = stop - first
    p, q = np.zeros(width, weight_t.dtype), np.zeros(width, weight_t.dtype)
    p_at, at = np.zeros(width), np.full(width, np.inf)  # just before the last jump in this stretch, and its time
    jump = np.empty(len(out_time))
    k = len(out_time) - 1
    while k >= 0 and not first <= out_neuron[k] < stop:  # padding, and other blocks' spikes
        k -= 1
    if k < 0:
        return
    e = out_after[k]  # p = q = 0 after the last spike, so the walk starts there
    until = np.float64(time[e + 1]) if e + 1 < len(time) and time[e + 1] < t_end else t_end
    while e >= 0:
        now = np.float64(time[e])
        latest = k
        while k >= 0 and out_after[k] == e:
            n = out_neuron[k] - first
            if 0 <= n < width:
                if at[n] == np.inf:
                    p_at[n], at[n] = p[n], until
                t = np.float64(out_time[k])
                p_k = p_at[n] * math.exp(-(at[n] - t) / tau_mem)
                jump[k] = spike_jump(p_k, grad[k], out_slope[k], v_th, tau_mem)
                p_at[n], at[n] = p_k + jump[k], t
            k -= 1
        a_e, s_e, phi_e = coefficients[e, 0], coefficients[e, 1], coefficients[e, 2]
        for n in range(width):
            p[n], q[n] = adjoint_flow(p[n], q[n], a_e, s_e, phi_e)
        for j in range(k + 1, latest + 1):  # the flow is linear: what each jump adds at the start of the stretch
            n = out_neuron[j] - first
            if 0 <= n < width:
                a, s, phi = decay(np.float64(out_time[j]) - now, tau_mem, tau_syn)
                p_j, q_j = adjoint_flow(jump[j], 0.0, a, s, phi)
                p[n] += p_j
                q[n] += q_j
                at[n] = np.inf
        until = now
        while e >= 0 and time[e] == now:  # all arrivals at this time
            if len(grad_weight):
                row = grad_weight[index[e]]
                for n in range(width):
                    row[first + n] += q[n]
            if len(grad_time):
                row = weight_t[index[e]]
                total = row.dtype.type(0.0)
                for n in range(width):
                    total += arrival_time_gradient(p[n], q[n], row[first + n], tau_mem, tau_syn)
                grad_time[e] = total
            e -= 1


@jit(parallel=True)
def adjoint_batch(
    time, index, weight_t, out_time, out_neuron, out_slope, out_after, grad, grad_weight, grad_time,
    tau_mem, tau_syn, v_th, t_end,
):  # fmt: skip
    """``grad_weight`` [chunks of samples, M, N] and ``grad_time`` [blocks of neurons, B, K]: the tasks' shares."""
    batch, width = len(time), weight_t.shape[1]
    chunks, blocks = len(grad_weight), len(grad_time)
    coefficients = np.empty((batch, time.shape[1], 3), weight_t.dtype)
    for b in numba.prange(batch):
        interval_decay(time[b], t_end, tau_mem, tau_syn, coefficients[b])
    for task in numba.prange(chunks * blocks):
        chunk, block = task // blocks, task % blocks
        first, stop = block * width // blocks, (block + 1) * width // blocks
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            adjoint_sample(
                time[b], index[b], weight_t, coefficients[b], out_time[b], out_neuron[b], out_slope[b], out_after[b],
                grad[b], first, stop, grad_weight[chunk], grad_time[block, b], tau_mem, tau_syn, v_th, t_end,
            )  # fmt: skip


def forward(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Tape:
    """Emitted spikes of a layer at rest that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N]."""
    arrivals = _arrays(time, index, weight_t)
    batch, capacity = len(time), 4 * weight_t.shape[1] + 64
    while True:
        out_time = torch.empty((batch, capacity), dtype=weight_t.dtype)
        out_neuron = torch.empty((batch, capacity), dtype=torch.int64)
        out_slope, out_after = torch.empty_like(out_time), torch.empty_like(out_neuron)
        buffers = _arrays(out_time, out_neuron, out_slope, out_after)
        with _torch_threads():
            counts = simulate_batch(*arrivals, *buffers, neuron.tau_mem, neuron.tau_syn, neuron.v_th, t_end)
        largest = int(counts.max(initial=0))
        check_finite(counts.min(initial=0) >= 0)
        check_spike_count(largest)
        if largest <= capacity:
            break
        capacity = largest
    tape = Tape(*(torch.empty((batch, largest), dtype=t.dtype) for t in (out_time, out_neuron, out_slope, out_after)))
    pack(counts, *buffers, *_arrays(*tape))
    return tape


def maximum(time: Tensor, index: Tensor, weight_t: Tensor, neuron: LIF, t_end: float) -> Maximum:
    """The maximum over time of the potential of neurons that do not spike, in closed form."""
    shape = (len(time), weight_t.shape[1])
    result = Maximum(
        value=torch.zeros(shape, dtype=weight_t.dtype),
        time=torch.full(shape, -math.inf, dtype=weight_t.dtype),
        after=torch.full(shape, -1),
        arrival=torch.full(shape, -1),
        slope=torch.zeros(shape, dtype=weight_t.dtype),
    )
    with _torch_threads():
        finite = find_maximum_batch(
            *_arrays(time, index, weight_t), *_arrays(*result), neuron.tau_mem, neuron.tau_syn, t_end
        )
    check_finite(bool(finite.all()))
    return result


def average(time: Tensor, index: Tensor, inputs: int, neuron: LIF, t_end: float) -> Tensor:
    """[B, M] time average over [0, t_end] of the potential that each of M ``inputs`` raises through a weight of 1."""
    received = torch.zeros((len(time), inputs), dtype=time.dtype)
    with _torch_threads():
        average_batch(*_arrays(time, index, received), neuron.tau_mem, neuron.tau_syn, t_end)
    return received


def average_adjoint(time: Tensor, index: Tensor, grad: Tensor, neuron: LIF, t_end: float) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [B, M], the gradient of what ``average`` returns."""
    grad_time = torch.zeros_like(time)
    with _torch_threads():
        average_adjoint_batch(*_arrays(time, index, grad, grad_time), neuron.tau_mem, neuron.tau_syn, t_end)
    return grad_time


def adjoint(
    time: Tensor, index: Tensor, weight_t: Tensor, tape: Tape, grad: Tensor, neuron: LIF, v_reset: float, t_end: float,
    need_time: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight_t [M, N] from ``grad`` [B, S] = dL/d(emitted time); empty where not needed.

    ``v_reset`` is by how much a spike lowers V: v_th, or 0 for mere observations of V.
    """
    (batch, arrivals), (inputs, width) = time.shape, weight_t.shape
    blocks = -(-width // ADJOINT_BLOCK)
    chunks = max(1, min(batch, ADJOINT_TASKS // max(blocks, 1)))
    grad_weight = torch.zeros((chunks, inputs if need_weight else 0, width), dtype=weight_t.dtype)
    grad_time = torch.zeros((blocks, batch, arrivals if need_time else 0), dtype=weight_t.dtype)
    with _torch_threads():
        adjoint_batch(
            *_arrays(time, index, weight_t, *_spikes(tape), grad, grad_weight, grad_time),
            neuron.tau_mem, neuron.tau_syn, v_reset, t_end,
        )  # fmt: skip
    return grad_time.sum(0), grad_weight[0] if chunks == 1 else grad_weight.sum(0)


def _spikes(tape: Tape) -> tuple[Tensor, ...]:
    return tape.time, tape.neuron, tape.slope, tape.after


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


class _torch_threads:
    """Run numba with as many threads as torch uses, and give the caller's number back."""

    def __enter__(self) -> None:
        self.saved = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))

    def __exit__(self, *_: object) -> None:
        numba.set_num_threads(self.saved)
