"""The time-stepped solver in plain torch: the reference for the numba kernels, and the solver on other devices.

The same functions as in ``kernels``, with the same arguments and results. All samples and neurons advance together, step
by step.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps, A of them with arrivals.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..event_driven.reference import next_crossing, sorted_tape
from ..neuron import adjoint_flow, decay, effect_time_gradient, flow, rewind, slope, spike_jump
from ..spikes import step_of
from ..tape import Tape, check_finite, check_spike_count
from .grid import Grid


def effects(time: Tensor, index: Tensor, inputs: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised by the end of their step: psp and psc, [2, A, B, M]."""
    sample, column, step, psp, psc = _arrivals(time, index, grid)
    steps, place = step.unique(return_inverse=True)
    values = time.new_zeros((2, len(steps), len(time), inputs))
    where = (place, sample, index[sample, column])
    values[0].index_put_(where, psp, accumulate=True)
    values[1].index_put_(where, psc, accumulate=True)
    return steps, values


def effects_adjoint(time: Tensor, index: Tensor, steps: Tensor, grad: Tensor, grid: Grid) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [2, A, B, M], the gradient of the effects that ``effects`` returns."""
    sample, column, step, psp, psc = _arrivals(time, index, grid)
    place = torch.tensor(_places(steps, grid), device=time.device)
    grad_psp, grad_psc = grad[:, place[step], sample, index[sample, column]]
    grad_time = torch.zeros_like(time)
    grad_time[sample, column] = effect_time_gradient(
        grad_psp, grad_psc, psp, psc, grid.neuron.tau_mem, grid.neuron.tau_syn
    )
    return grad_time


def drive_of(time: Tensor, index: Tensor, weight_t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The steps [A] with arrivals, and what these have raised behind ``weight_t`` [M, N] by the end of their step: the drive
    [2, A, B, N] of neurons."""
    steps, values = effects(time, index, len(weight_t), grid)
    return steps, values @ weight_t


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
    grad_time = effects_adjoint(time, index, steps, grad @ weight_t.t(), grid) if need_time else time.new_empty(0)
    if not need_weight:
        return grad_time, weight_t.new_empty(0)
    _, values = effects(time, index, len(weight_t), grid)
    return grad_time, grad.flatten(0, 2).t() @ values.flatten(0, 2)


def forward(drive: Tensor, steps: Tensor, grid: Grid) -> Tape:
    """Emitted spikes of neurons at rest that receive ``drive`` [2, A, B, N] (psp, psc) at the end of the steps ``steps``."""
    v = i = drive.new_zeros(drive.shape[2:], dtype=torch.float64)
    place = _places(steps, grid)
    emitted: list[tuple[Tensor, ...]] = []  # (sample, neuron, time, slope, step) of each batch of spikes
    total = torch.zeros(drive.shape[2], dtype=torch.int64, device=drive.device)
    for step in range(grid.steps):
        before = v
        v, i = flow(v, i, grid.a, grid.s, grid.phi)
        if place[step] >= 0:
            v, i = v + drive[0, place[step]], i + drive[1, place[step]]
        check_finite(bool(torch.isfinite(v).all() and torch.isfinite(i).all()))
        y = torch.full_like(v, grid.dt)  # the time before the end of the step since when V may have crossed
        while True:
            above = v >= grid.neuron.v_th
            if not above.any():
                break
            y, rise = _crossing(v, i, y, before, above, grid)
            fall = (
                grid.neuron.v_th * torch.exp(-y / grid.neuron.tau_mem) if grid.exact else v
            )  # eq. (3), seen from the end of the step
            sample, n = above.nonzero(as_tuple=True)
            at = ((step + 1) * grid.dt - y)[sample, n].to(drive)
            emitted.append((sample, n, at, rise[sample, n].to(drive), torch.full_like(n, step)))
            v = torch.where(above, v - fall, v)
            total += above.sum(1)
            check_spike_count(int(total.max()))
    return sorted_tape(emitted, drive.new_empty((len(total), 0)))


def adjoint(steps: Tensor, tape: Tape, grad: Tensor, neurons: int, grid: Grid) -> Tensor:
    """dL/ddrive [2, A, B, N] from ``grad`` [B, S] = dL/d(emitted time)."""
    batch = len(grad)
    p = q = grad.new_zeros((batch, neurons))
    place = _places(steps, grid)
    grad_drive = grad.new_zeros((2, len(steps), batch, neurons))
    samples = torch.arange(batch, device=grad.device)
    cursor = (tape.neuron >= 0).sum(1) - 1  # the last spike of each sample that is not yet walked over
    for step in reversed(range(grid.steps)):
        while tape.time.shape[1]:
            spike = cursor.clamp(min=0)
            mine = (cursor >= 0) & (tape.after[samples, spike] == step)
            if not mine.any():
                break
            sample, k = samples[mine], spike[mine]
            n = tape.neuron[sample, k]
            y = ((step + 1) * grid.dt - tape.time[sample, k]).clamp(min=0.0)
            a, s, phi = decay(y, grid.neuron.tau_mem, grid.neuron.tau_syn)
            jump = spike_jump(
                a * p[sample, n], grad[sample, k], tape.slope[sample, k], grid.neuron.v_th, grid.neuron.tau_mem
            )
            p = p.index_put(
                (sample, n), jump / a, accumulate=True
            )  # the jump of p at the spike, flown to the end of the step
            q = q.index_put((sample, n), -phi * jump / (a * s), accumulate=True)
            cursor = cursor - mine.long()
        if place[step] >= 0:
            grad_drive[0, place[step]], grad_drive[1, place[step]] = p, q
        p, q = adjoint_flow(p, q, grid.a, grid.s, grid.phi)
    return grad_drive


def _arrivals(time: Tensor, index: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Sample, column, step, psp and psc of every arrival before the end of the window."""
    t_end = grid.steps * grid.dt
    sample, column = ((index >= 0) & (time < t_end)).nonzero(as_tuple=True)
    at = time[sample, column]
    if not grid.exact:
        step = torch.round(at / grid.dt).long()
        kept = step < grid.steps
        return sample[kept], column[kept], step[kept], *(torch.full_like(at[kept], x) for x in (grid.phi, grid.s))
    step = step_of(at, grid.dt).clamp(max=grid.steps - 1)
    y = ((step + 1).double() * grid.dt - at).clamp(min=0.0)  # an int tensor times a float would be float32
    _, s, phi = decay(y, grid.neuron.tau_mem, grid.neuron.tau_syn)
    return sample, column, step, phi.to(time), s.to(time)


def _places(steps: Tensor, grid: Grid) -> list[int]:
    """For each step its place among the steps with arrivals, or -1; ``steps`` may be padded with -1."""
    place = [-1] * grid.steps
    for k, step in enumerate(steps.tolist()):
        if step >= 0:
            place[step] = k
    return place


def _crossing(v: Tensor, i: Tensor, y: Tensor, before: Tensor, above: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """How long before the end of the step V, which is (v, i) there, crossed the threshold, and with which slope.

    The state at the end is run backwards by at most ``y``. Where it is above the threshold even then, as after inhibition
    that came within the step, the spike stays there and its time is a constant: its slope counts as infinite.
    """
    if not grid.exact:
        return torch.zeros_like(v), (v - before) / grid.dt
    a, s, phi = decay(y, grid.neuron.tau_mem, grid.neuron.tau_syn)
    v_left, i_left = rewind(v, i, a, s, phi)
    inside = above & (v_left < grid.neuron.v_th)
    dt, found = next_crossing(torch.where(inside, v_left, 0.0), torch.where(inside, i_left, 0.0), y, grid.neuron)
    y = torch.where(inside, torch.where(found, y - dt, 0.0), y)
    rise = slope(i * torch.exp(y / grid.neuron.tau_syn), grid.neuron.v_th, grid.neuron.tau_mem)
    # a crossing whose slope is lost to rounding still has a finite gradient
    return y, torch.where(inside, rise.clamp(min=1e-16 * grid.neuron.v_th / grid.neuron.tau_mem), math.inf)
