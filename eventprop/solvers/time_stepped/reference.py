"""The time-stepped solver in plain torch: the reference for the numba kernels, and the solver on other devices.

The same functions as in ``kernels``, with the same arguments and results. All samples and neurons advance together, step
by step.

The arrivals of a step count as one: at the time, and of the weight, that explain psp and psc at its end. Then V is
continuous, and every crossing before and after that arrival is found as between two arrivals. Where no time in the step
explains both, as can be with arrivals of both signs, they count as two: one that explains psp, as the step begins (in a step
longer than a time constant, one time constant before its end), and the rest of psc at the end.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps, A of them with arrivals.
"""

from __future__ import annotations

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
    spike_jump,
)
from eventprop.core.spikes import step_of

from ..crossing_reference import next_crossing
from ..emission_reference import Emission
from ..tape import Tape, check_finite
from .grid import Grid

# Where in its step a spike lies, seen from what stands for the arrivals, and so what its time depends on: the state at the
# beginning of the step; the state at the end, whatever the time of the arrival; the state at the beginning, and psp. On a tape,
# ``after`` is KINDS times the step plus this.
BEFORE, AFTER, BETWEEN = range(3)
KINDS = 3
EDGE = 1e-6  # of a step: where rounding, in float32, may put what arrives as a step begins or ends


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
    place, neuron = _places(steps, grid), grid.neuron
    emitted = Emission(len(v), drive.new_empty(0))  # with the kind in the number of the neuron, and ``after`` the step
    first = torch.full_like(v, BEFORE if grid.exact else AFTER, dtype=torch.int64)
    least = least_after_crossing(grid.a, grid.phi, neuron.v_th)

    def emit(fired: Tensor, step: int, y: Tensor, rise: Tensor, kind: Tensor) -> None:
        """A spike of each neuron that ``fired``, the time ``y`` before the end of the step."""
        sample, n = fired.nonzero(as_tuple=True)
        at, code = ((step + 1) * grid.dt - y)[fired], KINDS * n + kind[fired]
        emitted.add(sample, code, at.to(drive), rise[fired].to(drive), torch.full_like(n, step))

    for step in range(grid.steps):
        v_n, i_n = v, i
        v, i = flow(v, i, grid.a, grid.s, grid.phi)
        highest, zero = v, torch.zeros_like(v)
        weight = zero
        parts = [(zero + grid.dt, zero, first)]  # how long, from when to the end of the step, and where its spikes lie
        if place[step] >= 0:
            psp, psc = drive[:, place[step]].double()
            v, i = v + psp, i + psc
            highest = torch.maximum(highest, v)
            y, weight, last = _as_one(psp, psc, grid)
            parts = [(grid.dt - y, y, first), (y, zero, last)]
        check_finite(bool(torch.isfinite(v).all() and torch.isfinite(i).all()))
        if not grid.exact:
            fired = v >= neuron.v_th
            emit(fired, step, zero, (v - v_n) / grid.dt, first)
            v = torch.where(fired, 0.0, v)
            continue
        if not (highest >= least).any():
            continue
        ever = torch.zeros_like(v, dtype=torch.bool)
        for left, rest, kind in parts:
            while True:
                dt, fired = next_crossing(v_n, i_n, left, *neuron.numbers)
                if not fired.any():
                    break
                left = torch.where(fired, (left - dt).clamp(min=0.0), left)
                v_n = torch.where(fired, 0.0, v_n)  # eq. (3)
                i_n = torch.where(fired, i_n * torch.exp(-dt / neuron.tau_syn), i_n)
                emit(fired, step, left + rest, crossing_slope(i_n, neuron.v_th, neuron.tau_mem), kind)
                ever |= fired
            v_n, i_n = flow(v_n, i_n, *decay(left, neuron.tau_mem, neuron.tau_syn))
            i_n = i_n + weight  # eq. (4); after the second stretch it is not used
        v = torch.where(ever, v_n, v)
    return with_kinds(emitted.tape())


def with_kinds(tape: Tape) -> Tape:
    """A tape whose ``after`` holds the kinds that were sorted along with ``neuron``; padding stays -1."""
    return tape._replace(neuron=tape.neuron // KINDS, after=KINDS * tape.after + tape.neuron % KINDS)


def adjoint(steps: Tensor, tape: Tape, grad: Tensor, neurons: int, grid: Grid) -> Tensor:
    """dL/ddrive [2, A, B, N] from ``grad`` [B, S] = dL/d(emitted time)."""
    batch = len(grad)
    p = q = grad.new_zeros((batch, neurons))
    place = _places(steps, grid)
    grad_drive = grad.new_zeros((2, len(steps), batch, neurons))
    samples = torch.arange(batch, device=grad.device)
    cursor = (tape.neuron >= 0).sum(1) - 1  # the last spike of each sample that is not yet walked over
    longest, whole = _longest(grid)
    channel = torch.arange(2, device=grad.device)[:, None]
    for step in reversed(range(grid.steps)):
        if place[step] >= 0:
            grad_drive[0, place[step]], grad_drive[1, place[step]] = p, q
        while tape.time.shape[1]:
            spike = cursor.clamp(min=0)
            mine = (cursor >= 0) & (tape.after[samples, spike] // KINDS == step)
            if not mine.any():
                break
            sample, k = samples[mine], spike[mine]
            n = tape.neuron[sample, k]
            y = ((step + 1) * grid.dt - tape.time[sample, k]).clamp(min=0.0)
            a, s, phi = decay(y, grid.neuron.tau_mem, grid.neuron.tau_syn)
            jump = spike_jump(
                a * p[sample, n], grad[sample, k], tape.slope[sample, k], grid.neuron.v_th, grid.neuron.tau_mem
            )
            jumps = torch.stack([jump / a, -phi * jump / (a * s)])  # flown to the end of the step
            p = p.index_put((sample, n), jumps[0], accumulate=True)
            q = q.index_put((sample, n), jumps[1], accumulate=True)
            if place[step] >= 0:
                kind = tape.after[sample, k] % KINDS
                raised = decay((longest - y).clamp(min=0.0), grid.neuron.tau_mem, grid.neuron.tau_syn)[2] / whole
                between = torch.stack([raised * jump, torch.zeros_like(jump)])
                jumps = torch.where(kind == AFTER, jumps, torch.where(kind == BETWEEN, between, 0.0))
                grad_drive[:, place[step]].index_put_((channel, sample, n), jumps, accumulate=True)
            cursor = cursor - mine.long()
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


def _as_one(psp: Tensor, psc: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """What stands for the arrivals of a step: the time before its end, the weight, and where spikes behind it lie."""
    y = arrival_offset(psp, psc, grid.neuron.tau_mem, grid.neuron.tau_syn)
    inside = (y >= -EDGE * grid.dt) & (y <= (1.0 + EDGE) * grid.dt)
    longest, whole = _longest(grid)
    y = torch.where(inside, y.clamp(0.0, grid.dt), longest)
    weight = torch.where(inside, psc / torch.exp(-y / grid.neuron.tau_syn), psp / whole)
    return y, weight, torch.where(inside, AFTER, BETWEEN)


def _longest(grid: Grid) -> tuple[float, float]:
    """How long before the end of a step the first of two arrivals that stand for all comes, and psp for a weight of 1."""
    longest = min(grid.dt, grid.neuron.tau_mem, grid.neuron.tau_syn)
    _, _, phi = decay(torch.tensor(longest, dtype=torch.float64), grid.neuron.tau_mem, grid.neuron.tau_syn)
    return longest, phi.item()
