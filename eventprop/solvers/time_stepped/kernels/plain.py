"""Plain layers on a grid, in numba: the same functions as in ``reference``.

Each sample is walked once over time, with its neurons along the vector axis and their state in the first-level cache.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps, A of them with arrivals.
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
    arrival_offset,
    crossing_slope,
    decay,
    effect_time_gradient,
    flow,
    least_after_crossing,
    remaining_reset,
    spike_jump,
)

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.exponential import exp
from ...compilation.jit import arrays, is_finite, jit, threads
from ...crossing import NEVER, next_crossing
from ...emission import Columns, record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from ..grid import Grid
from ..reference import AFTER, BEFORE, BETWEEN, EDGE, KINDS

NO_STEP = -1


class Constants(NamedTuple):
    """A ``Grid`` as numbers: how one type of neuron advances by one step."""

    dt: float
    a: float
    s: float
    phi: float
    exact: bool
    tau_mem: float
    tau_syn: float
    v_th: float

    @classmethod
    def of(cls, grid: Grid) -> Constants:
        return cls(grid.dt, grid.a, grid.s, grid.phi, grid.exact, *grid.neuron.numbers)


def effects(time: Tensor, index: Tensor, inputs: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised by the end of their step: psp and psc, [2, A, B, M]."""
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        steps = np.flatnonzero(np.bincount(step[step >= 0], minlength=1))
        values = torch.zeros((2, len(steps), len(time), inputs), dtype=time.dtype)
        add_effects(Arrivals(*arrays(time, index)), step, _places(steps, grid), *arrays(values), Constants.of(grid))
    return torch.from_numpy(steps), values


def effects_adjoint(time: Tensor, index: Tensor, steps: Tensor, grad: Tensor, grid: Grid) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [2, A, B, M], the gradient of the effects that ``effects`` returns."""
    grad_time = torch.zeros(time.shape, dtype=time.dtype)
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        place = _places(steps.numpy(), grid)
        gather_effects(Arrivals(*arrays(time, index)), step, place, *arrays(grad, grad_time), Constants.of(grid))
    return grad_time


def drive_of(time: Tensor, index: Tensor, weight_t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised behind ``weight_t`` [M, N] by the end of their step: the drive
    [2, A, B, N] of neurons."""
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        steps = np.flatnonzero(np.bincount(step[step >= 0], minlength=1))
        drive = torch.zeros((2, len(steps), len(time), weight_t.shape[1]), dtype=weight_t.dtype)
        add_weighted(
            Arrivals(*arrays(time, index)), step, _places(steps, grid), *arrays(weight_t, drive), Constants.of(grid)
        )
    return torch.from_numpy(steps), drive


def drive_adjoint(
    time: Tensor,
    index: Tensor,
    weight_t: Tensor,
    steps: Tensor,
    grad: Tensor,
    grid: Grid,
    need_time: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """dL/dtime [B, K] and dL/dweight [N, M] from ``grad`` [2, A, B, N], the gradient of the drive; empty where not needed."""
    batch = len(time)
    grad_time = torch.zeros((batch, time.shape[1] if need_time else 0), dtype=time.dtype)
    chunks, shape = min(backward_tasks(batch), batch), weight_t.shape if need_weight else (0, 0)
    shares = np.zeros((max(chunks, 1), *shape), grad_time.numpy().dtype)
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        place, received = _places(steps.numpy(), grid), Arrivals(*arrays(time, index))
        gather_weighted(received, step, place, *arrays(weight_t, grad, grad_time), shares, Constants.of(grid))
        return grad_time, weight_gradient(shares)


def forward(drive: Tensor, steps: Tensor, grid: Grid) -> Tape:
    """Emitted spikes of neurons at rest that receive ``drive`` [2, A, B, N] (psp, psc) at the end of the steps ``steps``."""
    batch, neurons = drive.shape[2:]
    (received,), place, constants = arrays(drive), _places(steps.numpy(), grid), Constants.of(grid)
    return recorded(
        lambda out, _: simulate_batch(received, place, out, constants), batch, neurons, received.dtype, tasks=batch
    )[0]


def adjoint(steps: Tensor, tape: Tape, grad: Tensor, neurons: int, grid: Grid) -> Tensor:
    """dL/ddrive [2, A, B, N] from ``grad`` [B, S] = dL/d(emitted time)."""
    grad_drive = torch.empty((2, len(steps), len(grad), neurons), dtype=grad.dtype)
    with threads():
        adjoint_batch(
            _places(steps.numpy(), grid), Columns(*arrays(*tape)), *arrays(grad, grad_drive), Constants.of(grid)
        )
    return grad_drive


def _places(steps: np.ndarray, grid: Grid) -> np.ndarray:
    """For each step its place among the steps with arrivals, or NO_STEP; ``steps`` may be padded with -1."""
    place = np.full(grid.steps, NO_STEP)
    real = steps >= 0
    place[steps[real]] = np.flatnonzero(real)
    return place


@jit(parallel=True)
def steps_of_arrivals(time, steps, dt, exact):
    """The step in which each arrival lies (on a grid point: the step that begins there), or NO_STEP at and after the end
    of the window. Without ``exact``, times are rounded to grid points."""
    out = np.empty(time.shape, np.int64)
    t_end = steps * dt
    for b in numba.prange(len(time)):
        for k in range(time.shape[1]):
            t = np.float64(time[b, k])
            if not t < t_end:
                out[b, k] = NO_STEP
            elif exact:
                step = math.floor(t / dt)
                step += int((step + 1) * dt <= t) - int(step * dt > t)  # undo the rounding of t / dt
                out[b, k] = min(step, steps - 1)
            else:
                step = round(t / dt)
                out[b, k] = step if step < steps else NO_STEP
    return out


@jit
def effect(t, step, constants):
    """Eq. (11): psp and psc at the end of its step of an arrival at ``t``; (phi, s) if it came as the step began."""
    y = (step + 1) * constants.dt - np.float64(t)
    if y >= constants.dt or not constants.exact:
        return constants.phi, constants.s
    _, psc, psp = decay(max(y, 0.0), constants.tau_mem, constants.tau_syn)
    return psp, psc


@jit(parallel=True)
def add_effects(arrivals, step, place, values, constants):
    time, index = arrivals
    for b in numba.prange(len(time)):
        for k in range(time.shape[1]):
            if step[b, k] != NO_STEP:
                psp, psc = effect(time[b, k], step[b, k], constants)
                values[0, place[step[b, k]], b, index[b, k]] += psp
                values[1, place[step[b, k]], b, index[b, k]] += psc


@jit(parallel=True)
def gather_effects(arrivals, step, place, grad, grad_time, constants):
    time, index = arrivals
    for b in numba.prange(len(time)):
        for k in range(time.shape[1]):
            if step[b, k] != NO_STEP:
                psp, psc = effect(time[b, k], step[b, k], constants)
                at, m = place[step[b, k]], index[b, k]
                by_psp, by_psc = grad[0, at, b, m], grad[1, at, b, m]
                grad_time[b, k] = effect_time_gradient(by_psp, by_psc, psp, psc, constants.tau_mem, constants.tau_syn)


@jit(parallel=True)
def add_weighted(arrivals, step, place, weight_t, drive, constants):
    time, index = arrivals
    real = drive.dtype.type
    for b in numba.prange(len(time)):
        psp = psc = 0.0
        for k in range(time.shape[1]):
            if step[b, k] == NO_STEP:
                continue
            if k == 0 or time[b, k] != time[b, k - 1]:
                psp, psc = effect(time[b, k], step[b, k], constants)
            at, row, psp_k, psc_k = place[step[b, k]], weight_t[index[b, k]], real(psp), real(psc)
            by_psp, by_psc = drive[0, at, b], drive[1, at, b]
            for n in range(len(row)):
                by_psp[n] += psp_k * row[n]
                by_psc[n] += psc_k * row[n]


@jit(parallel=True)
def gather_weighted(arrivals, step, place, weight_t, grad, grad_time, shares, constants):
    """``grad_time`` [B, K] and ``shares`` [chunks, M, N] stay as they are where they are empty."""
    time, index = arrivals
    batch, chunks, width, real = len(time), len(shares), weight_t.shape[1], weight_t.dtype.type
    for chunk in numba.prange(chunks):
        by_weight = np.empty(width, weight_t.dtype)
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            k = 0
            while k < time.shape[1] and step[b, k] != NO_STEP:
                at, now = place[step[b, k]], time[b, k]
                psp, psc = effect(now, step[b, k], constants)
                grad_psp, grad_psc, psp_now, psc_now = grad[0, at, b], grad[1, at, b], real(psp), real(psc)
                for n in range(width):
                    by_weight[n] = psp_now * grad_psp[n] + psc_now * grad_psc[n]
                while k < time.shape[1] and time[b, k] == now:  # all arrivals at this time
                    if shares.shape[1]:
                        share = shares[chunk, index[b, k]]
                        for n in range(width):
                            share[n] += by_weight[n]
                    if grad_time.shape[1]:
                        row, by_psp, by_psc = weight_t[index[b, k]], real(0.0), real(0.0)
                        for n in range(width):
                            by_psp += row[n] * grad_psp[n]
                            by_psc += row[n] * grad_psc[n]
                        grad_time[b, k] = effect_time_gradient(
                            by_psp, by_psc, psp, psc, constants.tau_mem, constants.tau_syn
                        )
                    k += 1


@jit
def advance(v, i, v_end, i_end, can_cross, a, s, phi, least):
    """Flow of all neurons over one step without arrivals, and which of them can cross the threshold in it: those that end it
    with the ``least`` of eq. (15)."""
    for n in range(len(v)):
        v_end[n], i_end[n] = flow(v[n], i[n], a, s, phi)
        can_cross[n] = v_end[n] >= least


@jit
def advance_and_receive(v, i, v_end, i_end, can_cross, psp, psc, a, s, phi, least):
    """The same for a step with arrivals, which have raised (psp, psc) by its end. A V that crosses before them would have ended
    the step with ``least`` without them."""
    for n in range(len(v)):
        v_n, i_n = flow(v[n], i[n], a, s, phi)
        v_end[n], i_end[n] = v_n + psp[n], i_n + psc[n]
        can_cross[n] = max(v_n, v_end[n]) >= least


@jit
def as_one(psp, psc, dt, longest, tau_mem, tau_syn):
    """What stands for the arrivals of a step, as in ``reference``: the time before its end, the weight, and where spikes behind
    it lie."""
    y = arrival_offset(psp, psc, tau_mem, tau_syn)
    if -EDGE * dt <= y <= (1.0 + EDGE) * dt:
        y = min(max(y, 0.0), dt)
        return y, psc / exp(-y / tau_syn), AFTER
    _, _, phi = decay(longest, tau_mem, tau_syn)
    return longest, psp / phi, BETWEEN


@jit
def simulate(drive, b, place, out, constants):
    """Sample ``b``: write its spikes to the row ``out``, ordered by time. Returns how many there are, also of those that do not
    fit, and whether all potentials stayed finite."""
    dt, a, s, phi, exact, tau_mem, tau_syn, v_th = constants
    neurons = drive.shape[3]
    v, i, v_end, i_end = np.zeros(neurons), np.zeros(neurons), np.empty(neurons), np.empty(neurons)
    can_cross = np.zeros(-(-neurons // 8) * 8, np.bool_)
    can_cross_by_eight = can_cross.view(np.uint64)
    least = least_after_crossing(a, phi, v_th) if exact else v_th
    longest = min(dt, tau_mem, tau_syn)
    spikes = 0
    for step in range(len(place)):
        at, end = place[step], (step + 1) * dt
        if at == NO_STEP:
            advance(v, i, v_end, i_end, can_cross, a, s, phi, least)
        else:
            advance_and_receive(v, i, v_end, i_end, can_cross, drive[0, at, b], drive[1, at, b], a, s, phi, least)
        begin = spikes
        for eight in range(len(can_cross_by_eight)):
            if can_cross_by_eight[eight] == 0:
                continue
            for n in range(8 * eight, 8 * eight + 8):
                if not can_cross[n]:
                    continue
                if not (v_end[n] < np.inf and abs(i_end[n]) < np.inf):
                    return spikes, False
                if not exact:
                    if v_end[n] >= v_th:
                        record(out, spikes, end, n, (v_end[n] - v[n]) / dt, KINDS * step + AFTER)
                        spikes += 1
                        v_end[n] = 0.0
                    continue
                y, weight, last = 0.0, 0.0, BEFORE
                if at != NO_STEP:
                    psp, psc = np.float64(drive[0, at, b, n]), np.float64(drive[1, at, b, n])
                    y, weight, last = as_one(psp, psc, dt, longest, tau_mem, tau_syn)
                v_n, i_n = v[n], i[n]
                for part in range(1 if last == BEFORE else 2):
                    kind, left, rest = (last, y, 0.0) if part else (BEFORE, dt - y, y)
                    i_n += weight if part else 0.0  # eq. (4)
                    v_stop, i_stop = flow(v_n, i_n, *decay(left, tau_mem, tau_syn))
                    while True:
                        after = next_crossing(v_n, i_n, v_stop, i_stop, left, tau_mem, tau_syn, v_th)
                        if after == NEVER:
                            break
                        left = max(left - after, 0.0)
                        v_n, i_n = 0.0, i_n * exp(-after / tau_syn)  # eq. (3)
                        v_stop -= remaining_reset(left, v_th, tau_mem)
                        rise = crossing_slope(i_n, v_th, tau_mem)
                        record(out, spikes, end - (left + rest), n, rise, KINDS * step + kind)
                        spikes += 1
                        if spikes > MAX_SPIKES_PER_SAMPLE:
                            return spikes, True
                    v_n, i_n = v_stop, i_stop
                v_end[n] = v_n
        if begin < spikes:
            sort_by_time(out, begin, spikes)
        v, v_end = v_end, v
        i, i_end = i_end, i
    return spikes, is_finite(v) and is_finite(i)


@jit(parallel=True)
def simulate_batch(drive, place, out, constants):
    batch = drive.shape[2]
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], finite[b] = simulate(drive, b, place, row_of(out, b, 0), constants)
    return counts, finite


@jit
def flow_back(p, q, a, s, phi):
    """Adjoint flow of all neurons over one step."""
    for n in range(len(p)):
        p[n], q[n] = adjoint_flow(p[n], q[n], a, s, phi)


@jit(parallel=True)
def adjoint_batch(place, tape, grad, grad_drive, constants):
    dt, a, s, phi, _, tau_mem, tau_syn, v_th = constants
    out_time, out_neuron, out_slope, out_after = tape
    neurons = grad_drive.shape[3]
    longest = min(dt, tau_mem, tau_syn)
    _, _, whole = decay(longest, tau_mem, tau_syn)
    for b in numba.prange(len(out_time)):
        p, q = np.zeros(neurons), np.zeros(neurons)
        k = out_time.shape[1] - 1
        while k >= 0 and out_neuron[b, k] < 0:  # padding
            k -= 1
        for step in range(len(place) - 1, -1, -1):
            at = place[step]
            if at != NO_STEP:
                grad_drive[0, at, b] = p
                grad_drive[1, at, b] = q
            while k >= 0 and out_after[b, k] // KINDS == step:
                n, kind = out_neuron[b, k], out_after[b, k] % KINDS
                y = max((step + 1) * dt - np.float64(out_time[b, k]), 0.0)
                a_y, s_y, phi_y = decay(y, tau_mem, tau_syn)
                jump = spike_jump(a_y * p[n], np.float64(grad[b, k]), np.float64(out_slope[b, k]), v_th, tau_mem)
                p_jump, q_jump = jump / a_y, -phi_y * jump / (a_y * s_y)  # flown to the end of the step
                p[n] += p_jump
                q[n] += q_jump
                if at != NO_STEP and kind == AFTER:
                    grad_drive[0, at, b, n] += p_jump
                    grad_drive[1, at, b, n] += q_jump
                elif kind == BETWEEN:
                    _, _, raised = decay(max(longest - y, 0.0), tau_mem, tau_syn)
                    grad_drive[0, at, b, n] += raised / whole * jump
                k -= 1
            flow_back(p, q, a, s, phi)
