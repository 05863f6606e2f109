"""The time-stepped solver on the CPU, in numba: the same functions as in ``reference``.

Each sample is walked once over time, with its neurons along the vector axis and their state in the first-level cache.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps, A of them with arrivals.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from ..event_driven.kernels.adjoint import backward_tasks
from ..event_driven.kernels.common import weight_gradient
from ..event_driven.kernels.forward import NEVER, next_crossing, recorded, sort_by_time
from ..jit import arrays, is_finite, jit, threads
from ..neuron import adjoint_flow, decay, effect_time_gradient, flow, rewind, slope, spike_jump
from ..tape import MAX_SPIKES_PER_SAMPLE, Tape
from .grid import Grid

NO_STEP = -1


def effects(time: Tensor, index: Tensor, inputs: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised by the end of their step: psp and psc, [2, A, B, M]."""
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        steps = np.flatnonzero(np.bincount(step[step >= 0], minlength=1))
        values = torch.zeros((2, len(steps), len(time), inputs), dtype=time.dtype)
        add_effects(*arrays(time, index), step, _places(steps, grid), *arrays(values), *_effect_constants(grid))
    return torch.from_numpy(steps), values


def effects_adjoint(time: Tensor, index: Tensor, steps: Tensor, grad: Tensor, grid: Grid) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [2, A, B, M], the gradient of the effects that ``effects`` returns."""
    grad_time = torch.zeros(time.shape, dtype=time.dtype)
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        gather_effects(
            *arrays(time, index), step, _places(steps.numpy(), grid), *arrays(grad, grad_time), *_effect_constants(grid)
        )
    return grad_time


def drive_of(time: Tensor, index: Tensor, weight_t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised behind ``weight_t`` [M, N] by the end of their step: the drive
    [2, A, B, N] of neurons."""
    with threads():
        step = steps_of_arrivals(*arrays(time), grid.steps, grid.dt, grid.exact)
        steps = np.flatnonzero(np.bincount(step[step >= 0], minlength=1))
        drive = torch.zeros((2, len(steps), len(time), weight_t.shape[1]), dtype=weight_t.dtype)
        add_weighted(
            *arrays(time, index), step, _places(steps, grid), *arrays(weight_t, drive), *_effect_constants(grid)
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
        gather_weighted(
            *arrays(time, index), step, _places(steps.numpy(), grid), *arrays(weight_t, grad, grad_time), shares,
            *_effect_constants(grid),
        )  # fmt: skip
        return grad_time, weight_gradient(shares)


def forward(drive: Tensor, steps: Tensor, grid: Grid) -> Tape:
    """Emitted spikes of neurons at rest that receive ``drive`` [2, A, B, N] (psp, psc) at the end of the steps ``steps``."""
    batch, neurons = drive.shape[2:]
    received, constants = (*arrays(drive), _places(steps.numpy(), grid)), (*_constants(grid), grid.exact)
    return recorded(
        lambda *out: simulate_batch(*received, *out, *constants), batch, neurons, received[0].dtype, tasks=batch
    )


def adjoint(steps: Tensor, tape: Tape, grad: Tensor, neurons: int, grid: Grid) -> Tensor:
    """dL/ddrive [2, A, B, N] from ``grad`` [B, S] = dL/d(emitted time)."""
    grad_drive = torch.empty((2, len(steps), len(grad), neurons), dtype=grad.dtype)
    with threads():
        adjoint_batch(_places(steps.numpy(), grid), *arrays(*tape, grad, grad_drive), *_constants(grid))
    return grad_drive


def _places(steps: np.ndarray, grid: Grid) -> np.ndarray:
    """For each step its place among the steps with arrivals, or NO_STEP; ``steps`` may be padded with -1."""
    place = np.full(grid.steps, NO_STEP)
    real = steps >= 0
    place[steps[real]] = np.flatnonzero(real)
    return place


def _constants(grid: Grid) -> tuple[float, ...]:
    neuron = grid.neuron
    return grid.dt, grid.a, grid.s, grid.phi, neuron.tau_mem, neuron.tau_syn, neuron.v_th


def _effect_constants(grid: Grid) -> tuple[float | bool, ...]:
    return grid.dt, grid.s, grid.phi, grid.neuron.tau_mem, grid.neuron.tau_syn, grid.exact


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
def effect(t, step, dt, s, phi, tau_mem, tau_syn, exact):
    """Eq. (11): psp and psc at the end of its step of an arrival at ``t``; (phi, s) if it came as the step began."""
    y = (step + 1) * dt - np.float64(t)
    if y >= dt or not exact:
        return phi, s
    _, psc, psp = decay(max(y, 0.0), tau_mem, tau_syn)
    return psp, psc


@jit(parallel=True)
def add_effects(time, index, step, place, values, dt, s, phi, tau_mem, tau_syn, exact):
    for b in numba.prange(len(time)):
        for k in range(time.shape[1]):
            if step[b, k] != NO_STEP:
                psp, psc = effect(time[b, k], step[b, k], dt, s, phi, tau_mem, tau_syn, exact)
                values[0, place[step[b, k]], b, index[b, k]] += psp
                values[1, place[step[b, k]], b, index[b, k]] += psc


@jit(parallel=True)
def gather_effects(time, index, step, place, grad, grad_time, dt, s, phi, tau_mem, tau_syn, exact):
    for b in numba.prange(len(time)):
        for k in range(time.shape[1]):
            if step[b, k] != NO_STEP:
                psp, psc = effect(time[b, k], step[b, k], dt, s, phi, tau_mem, tau_syn, exact)
                at, m = place[step[b, k]], index[b, k]
                grad_time[b, k] = effect_time_gradient(grad[0, at, b, m], grad[1, at, b, m], psp, psc, tau_mem, tau_syn)


@jit(parallel=True)
def add_weighted(time, index, step, place, weight_t, drive, dt, s, phi, tau_mem, tau_syn, exact):
    real = drive.dtype.type
    for b in numba.prange(len(time)):
        psp = psc = 0.0
        for k in range(time.shape[1]):
            if step[b, k] == NO_STEP:
                continue
            if k == 0 or time[b, k] != time[b, k - 1]:
                psp, psc = effect(time[b, k], step[b, k], dt, s, phi, tau_mem, tau_syn, exact)
            at, row, psp_k, psc_k = place[step[b, k]], weight_t[index[b, k]], real(psp), real(psc)
            by_psp, by_psc = drive[0, at, b], drive[1, at, b]
            for n in range(len(row)):
                by_psp[n] += psp_k * row[n]
                by_psc[n] += psc_k * row[n]


@jit(parallel=True)
def gather_weighted(
    time, index, step, place, weight_t, grad, grad_time, shares, dt, s, phi, tau_mem, tau_syn, exact
):  # fmt: skip
    """``grad_time`` [B, K] and ``shares`` [chunks, M, N] stay as they are where they are empty."""
    batch, chunks, width, real = len(time), len(shares), weight_t.shape[1], weight_t.dtype.type
    for chunk in numba.prange(chunks):
        by_weight = np.empty(width, weight_t.dtype)
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            k = 0
            while k < time.shape[1] and step[b, k] != NO_STEP:
                at, now = place[step[b, k]], time[b, k]
                psp, psc = effect(now, step[b, k], dt, s, phi, tau_mem, tau_syn, exact)
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
                        grad_time[b, k] = effect_time_gradient(by_psp, by_psc, psp, psc, tau_mem, tau_syn)
                    k += 1


@jit
def advance(v, i, v_end, a, s, phi):
    """Flow of all neurons over one step."""
    for n in range(len(v)):
        v_end[n], i[n] = flow(v[n], i[n], a, s, phi)


@jit
def receive(v, i, psp, psc):
    """Add the effect of the arrivals of a step at its end."""
    for n in range(len(v)):
        v[n] += psp[n]
        i[n] += psc[n]


@jit
def flag(v, v_th, above, above_by_eight):
    """Mark the neurons above the threshold; is there any?"""
    for n in range(len(v)):
        above[n] = v[n] >= v_th
    return above_by_eight.any()


@jit
def crossing(v, i, y, coefficients, tau_mem, tau_syn, v_th):
    """How long before the end of the step V, which is (v, i) there, crossed the threshold; the decay since; the slope.

    The state at the end is run backwards by at most ``y``, whose decay is ``coefficients``. Where it is above the threshold
    even then, as after inhibition that came within the step, the spike stays there and its time is a constant: its slope
    counts as infinite.
    """
    v_left, i_left = rewind(v, i, *coefficients)
    if v_left >= v_th:
        return y, coefficients, np.inf
    dt = next_crossing(v_left, i_left, v, i, y, tau_mem, tau_syn, v_th)
    y = 0.0 if dt == NEVER else y - dt
    a, s, phi = decay(y, tau_mem, tau_syn)
    # a crossing whose slope is lost to rounding still has a finite gradient
    return y, (a, s, phi), max(slope(i / s, v_th, tau_mem), 1e-16 * v_th / tau_mem)


@jit
def simulate(
    drive, b, place, out_time, out_neuron, out_slope, out_step, dt, a, s, phi, tau_mem, tau_syn, v_th, exact
):  # fmt: skip
    """Sample ``b``: write its spikes to ``out_*``, ordered by time, and return how many there are (more than fit in
    ``out_*``: only counted), or -1 if a potential is not finite."""
    neurons, capacity = drive.shape[3], len(out_time)
    v, i, v_end = np.zeros(neurons), np.zeros(neurons), np.empty(neurons)
    above = np.zeros(-(-neurons // 8) * 8, np.bool_)
    above_by_eight = above.view(np.uint64)
    spikes = 0
    for step in range(len(place)):
        advance(v, i, v_end, a, s, phi)
        if place[step] != NO_STEP:
            receive(v_end, i, drive[0, place[step], b], drive[1, place[step], b])
        begin = spikes
        if flag(v_end, v_th, above, above_by_eight):
            for eight in range(len(above_by_eight)):
                if above_by_eight[eight] == 0:
                    continue
                for n in range(8 * eight, 8 * eight + 8):
                    if not above[n]:
                        continue
                    if not (v_end[n] < np.inf and abs(i[n]) < np.inf):
                        return -1
                    y, coefficients = dt, (a, s, phi)
                    while True:
                        if exact:
                            y, coefficients, rise = crossing(v_end[n], i[n], y, coefficients, tau_mem, tau_syn, v_th)
                            fall = v_th * coefficients[0]  # eq. (3), seen from the end of the step
                        else:
                            y, rise, fall = 0.0, (v_end[n] - v[n]) / dt, v_end[n]
                        v_end[n] -= fall
                        if spikes < capacity:
                            out_time[spikes] = (step + 1) * dt - y
                            out_neuron[spikes], out_slope[spikes], out_step[spikes] = n, rise, step
                        spikes += 1
                        if spikes > MAX_SPIKES_PER_SAMPLE:
                            return spikes
                        if v_end[n] < v_th:
                            break
        if begin < spikes <= capacity:
            sort_by_time(out_time[begin:spikes], out_neuron[begin:spikes], out_slope[begin:spikes])
        v, v_end = v_end, v
    return spikes if is_finite(v) and is_finite(i) else -1


@jit(parallel=True)
def simulate_batch(
    drive, place, out_time, out_neuron, out_slope, out_step, dt, a, s, phi, tau_mem, tau_syn, v_th, exact
):  # fmt: skip
    counts = np.zeros(drive.shape[2], np.int64)
    for b in numba.prange(drive.shape[2]):
        counts[b] = simulate(
            drive, b, place, out_time[b], out_neuron[b], out_slope[b], out_step[b],
            dt, a, s, phi, tau_mem, tau_syn, v_th, exact,
        )  # fmt: skip
    return counts


@jit
def flow_back(p, q, a, s, phi):
    """Adjoint flow of all neurons over one step."""
    for n in range(len(p)):
        p[n], q[n] = adjoint_flow(p[n], q[n], a, s, phi)


@jit(parallel=True)
def adjoint_batch(
    place, out_time, out_neuron, out_slope, out_step, grad, grad_drive, dt, a, s, phi, tau_mem, tau_syn, v_th
):  # fmt: skip
    neurons = grad_drive.shape[3]
    for b in numba.prange(len(out_time)):
        p, q = np.zeros(neurons), np.zeros(neurons)
        k = out_time.shape[1] - 1
        while k >= 0 and out_neuron[b, k] < 0:  # padding
            k -= 1
        for step in range(len(place) - 1, -1, -1):
            while k >= 0 and out_step[b, k] == step:
                n = out_neuron[b, k]
                y = max((step + 1) * dt - np.float64(out_time[b, k]), 0.0)
                a_y, s_y, phi_y = decay(y, tau_mem, tau_syn)
                jump = spike_jump(a_y * p[n], np.float64(grad[b, k]), np.float64(out_slope[b, k]), v_th, tau_mem)
                p[n] += jump / a_y  # the jump of p at the spike, flown to the end of the step
                q[n] -= phi_y * jump / (a_y * s_y)
                k -= 1
            if place[step] != NO_STEP:
                grad_drive[0, place[step], b] = p
                grad_drive[1, place[step], b] = q
            flow_back(p, q, a, s, phi)
