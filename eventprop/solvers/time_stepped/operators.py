"""The grid solver's forward and backward passes as operators of torch, on either backend.

``numbers`` are tau_mem, tau_syn, v_th, t_end and dt: with the scheme, they make the ``Grid`` of one type of neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eventprop.core.neuron import LIF

from ..operators import TAPE_PADDING, operator, rows, some
from ..solver import effective_slope
from ..tape import Tape
from . import heterogeneous_reference
from .grid import Grid, Steps


def _solver(numbers: Sequence[float], scheme: str, backend: str) -> tuple[ModuleType, Grid]:
    *neuron, t_end, dt = numbers
    grid = Grid.of(LIF(*neuron), t_end, dt, scheme)
    if backend == "numba":
        from . import kernels  # imported here: numba is slow to import

        return kernels, grid
    from . import reference

    return reference, grid


def _at_steps(like: Tensor, width: int) -> tuple[Tensor, Tensor]:
    steps = some()
    return like.new_empty(steps, dtype=torch.int64), like.new_empty((2, steps, like.shape[0], width))


@operator(lambda time, index, inputs, *_: _at_steps(time, inputs), -1, 0.0)
def grid_effects(
    time: Tensor, index: Tensor, inputs: int,
    numbers: Sequence[float], scheme: str, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The steps [A] with arrivals, and what these have raised by the end of their step: psp and psc, [2, A, B, M]."""
    solver, grid = _solver(numbers, scheme, backend)
    return solver.effects(time, index, inputs, grid)


@operator(lambda time, *_: torch.empty_like(time))
def grid_effects_adjoint(
    time: Tensor, index: Tensor, steps: Tensor, grad: Tensor,
    numbers: Sequence[float], scheme: str, backend: str,
) -> Tensor:  # fmt: skip
    """dL/dtime [B, K] from ``grad`` [2, A, B, M], the gradient of what ``grid_effects`` returns."""
    solver, grid = _solver(numbers, scheme, backend)
    return solver.effects_adjoint(time, index, steps, grad, grid)


@operator(lambda time, index, weight, *_: _at_steps(time, weight.shape[0]), -1, 0.0)
def grid_drive(
    time: Tensor, index: Tensor, weight: Tensor,
    numbers: Sequence[float], scheme: str, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The steps [A] with arrivals, and what these have raised behind ``weight`` [N, M]: the drive [2, A, B, N] of neurons."""
    solver, grid = _solver(numbers, scheme, backend)
    return solver.drive_of(time, index, weight.t().contiguous(), grid)


def _of_inputs(
    time: Tensor, index: Tensor, weight: Tensor, steps: Tensor, grad: Tensor, need_time: bool, need_weight: bool, *_
) -> tuple[Tensor, Tensor]:
    return time.new_empty(time.shape if need_time else 0), weight.new_empty(weight.shape if need_weight else 0)


@operator(_of_inputs)
def grid_drive_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, steps: Tensor, grad: Tensor, need_time: bool, need_weight: bool,
    numbers: Sequence[float], scheme: str, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight [N, M] from ``grad`` [2, A, B, N], that of the drive; empty where not needed."""
    solver, grid = _solver(numbers, scheme, backend)
    grads = solver.drive_adjoint(time, index, weight.t().contiguous(), steps, grad, grid, need_time, need_weight)
    return grads[0].reshape(time.shape if need_time else 0), grads[1].reshape(weight.shape if need_weight else 0)


@operator(lambda drive, *_: rows(drive.transpose(0, 2), some()), *TAPE_PADDING)
def grid_spikes(
    drive: Tensor, steps: Tensor,
    numbers: Sequence[float], scheme: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The ``Tape`` of neurons that receive ``drive`` [2, A, B, N] at the end of the steps ``steps``."""
    solver, grid = _solver(numbers, scheme, backend)
    return solver.forward(drive, steps, grid)


@operator(
    lambda steps, at, neuron, slope, step, grad, neurons, *_: grad.new_empty(
        (2, steps.shape[0], grad.shape[0], neurons)
    )
)
def grid_adjoint(
    steps: Tensor, at: Tensor, neuron: Tensor, slope: Tensor, step: Tensor, grad: Tensor, neurons: int,
    numbers: Sequence[float], scheme: str, backend: str,
) -> Tensor:  # fmt: skip
    """dL/ddrive [2, A, B, N] from ``grad`` [B, S] = dL/dat."""
    solver, grid = _solver(numbers, scheme, backend)
    return solver.adjoint(steps, Tape(at, neuron, slope, step), grad, neurons, grid)


def _with_kept(time: Tensor, *_) -> tuple[Tensor, ...]:
    tape = rows(time, some())
    return *tape, time.new_empty((*tape[0].shape, some()), dtype=torch.float64)


@operator(_with_kept, *TAPE_PADDING, 0.0)
def grid_recurrent_spikes(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, neurons: Tensor, delay: float,
    t_end: float, dt: float, scheme: str, learns: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The ``Tape`` of ``neurons`` [N, 5] of all kinds, which receive spikes through ``weight`` [N, M], after ``delays`` [N, M],
    or [N, 0] for none, and their own, after a ``delay``, through ``recurrent`` [N, N] or [N, 0]. And what is kept of each
    spike, for the gradients of time constants if it ``learns`` these, and for the holds of V."""
    layer, grid = (time, index, weight, delays, recurrent, delay, neurons), Steps.of(neurons, t_end, dt, scheme)
    if backend == "numba":
        from .kernels import heterogeneous

        tape, kept = heterogeneous.forward(*layer, grid, learns)
        return *tape, kept
    with torch.no_grad():
        tape = heterogeneous_reference.forward(*layer, grid, torch.Tensor.clone)
    return *tape, time.new_empty((*tape.time.shape, 0))


def _of_layer(time: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return time.new_empty(time.shape if rest[-2] else 0), *(torch.empty_like(x) for x in rest[:4])


@operator(_of_layer)
def grid_recurrent_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, neurons: Tensor,
    at: Tensor, neuron: Tensor, slope: Tensor, after: Tensor, kept: Tensor, grad: Tensor, delay: float,
    t_end: float, dt: float, scheme: str, grazing: str, min_slope: float, need_time: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, delays, recurrent, neurons) from ``grad`` [B, S] = dL/dat, the first empty where not needed; in torch
    by running forward again."""
    layer, grid = (time, index, weight, delays, recurrent, delay, neurons), Steps.of(neurons, t_end, dt, scheme)
    if backend == "numba":
        from .kernels import heterogeneous_adjoint

        tape = Tape(at, neuron, effective_slope(slope, grazing, min_slope), after)
        by_time, by_weight, by_delays, by_recurrent, by_neurons = heterogeneous_adjoint.adjoint(
            *layer, grid, tape, kept, grad, need_time
        )
        return by_time if need_time else time.new_empty(0), by_weight, by_delays, by_recurrent, by_neurons
    # an operator that a mode has dispatched (opcheck and others) finds autograd switched off
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    with torch.enable_grad(), torch._C._ForceDispatchKeyGuard(included, excluded):
        time, *inputs = (x.detach().clone().requires_grad_() for x in (time, weight, delays, recurrent, neurons))
        weight, delays, recurrent, neurons = inputs
        again = heterogeneous_reference.forward(
            time, index, weight, delays, recurrent, delay, neurons, grid,
            lambda slope: effective_slope(slope, grazing, min_slope),
        )  # fmt: skip
        by_time, by_weight, by_delays, by_recurrent, by_neurons = torch.autograd.grad(
            again.time, (time, *inputs), grad, materialize_grads=True
        )
        return by_time if need_time else time.new_empty(0), by_weight, by_delays, by_recurrent, by_neurons
