"""The event-driven solver's forward and backward passes as operators of torch, on either backend.

``neuron`` is tau_mem, tau_syn and v_th of one type of neuron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eventprop.core.neuron import LIF
from eventprop.core.window import Window

from ..operators import TAPE_PADDING, operator, rows, some
from ..tape import Tape


def _backend(name: str) -> ModuleType:
    if name == "numba":
        from . import kernels  # imported here: numba is slow to import

        return kernels
    from . import reference

    return reference


@operator(lambda time, *_: rows(time, some()), *TAPE_PADDING)
def spikes(
    time: Tensor, index: Tensor, weight: Tensor, neuron: Sequence[float], t_end: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ``Tape`` of a layer with ``weight`` [N, M] that receives the spikes ``time``, ``index`` [B, K]."""
    solver = _backend(backend)
    return solver.forward(time, index, solver.input_major(weight), LIF(*neuron), t_end)


def _of_inputs(time: Tensor, weight: Tensor, need_time: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return time.new_empty(time.shape if need_time else 0), weight.new_empty(weight.shape if need_weight else 0)


@operator(lambda time, index, weight, *rest: _of_inputs(time, weight, *rest[6:8]))
def spikes_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, at: Tensor, source: Tensor, slope: Tensor, after: Tensor, grad: Tensor,
    v_reset: float, need_time: bool, need_weight: bool,
    neuron: Sequence[float], t_end: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight [N, M] from ``grad`` [B, S] = dL/dat; empty where not needed."""
    solver, tape = _backend(backend), Tape(at, source, slope, after)
    grads = solver.adjoint(time, index, weight, tape, grad, LIF(*neuron), v_reset, t_end, need_time, need_weight)
    none = weight.new_empty(0)
    return grads[0] if need_time else none, grads[1] if need_weight else none.clone()


def _maximum(time: Tensor, index: Tensor, weight: Tensor, *_) -> tuple[Tensor, ...]:
    value, after, at, arrival = rows(time, weight.shape[0])
    return value, at, after, arrival, torch.empty_like(value)


@operator(_maximum)
def maximum(
    time: Tensor, index: Tensor, weight: Tensor, neuron: Sequence[float], t_end: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The ``Maximum`` of neurons without threshold."""
    solver = _backend(backend)
    return solver.maximum(time, index, solver.input_major(weight), LIF(*neuron), t_end)


@operator(_maximum)
def maximum_by_tau(
    time: Tensor, index: Tensor, weight: Tensor, tau: Tensor, t_end: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same for time constants in a tensor, ``tau`` [2]."""
    solver = _backend(backend)
    return solver.maximum(time, index, solver.input_major(weight), LIF(*tau.tolist()), t_end)


def _between(
    time: Tensor, index: Tensor, weight: Tensor, state: Tensor, stop: Tensor, neuron: Sequence[float]
) -> tuple[Tensor, ...]:
    return *rows(time, some()), torch.empty_like(state)


@operator(_between, *TAPE_PADDING, 0.0)
def spikes_between(
    time: Tensor, index: Tensor, weight: Tensor, state: Tensor, stop: Tensor, neuron: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The ``Tape`` of a layer whose V and I are ``state`` [2, B, N] at the first arrival, up to ``stop`` [B], and its state
    then; on the CPU alone."""
    from .kernels.common import input_major
    from .kernels.forward import forward_between

    tape, end = forward_between(time, index, input_major(weight), state, stop, LIF(*neuron))
    return *tape, end


@operator(lambda time, index, weight, *rest: (*_of_inputs(time, weight, *rest[8:10]), torch.empty_like(rest[6])))
def spikes_between_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, at: Tensor, source: Tensor, slope: Tensor, after: Tensor, grad: Tensor,
    stop: Tensor, grad_end: Tensor, v_reset: float, need_time: bool, need_weight: bool, neuron: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/dtime, dL/dweight and dL/dstate [2, B, N] from ``grad`` [B, S] = dL/dat and ``grad_end`` [2, B, N]; the first two are
    empty where not needed."""
    from .kernels.adjoint import adjoint_between

    by_time, by_weight, by_state = adjoint_between(
        time,
        index,
        weight,
        Tape(at, source, slope, after),
        grad,
        grad_end,
        stop,
        LIF(*neuron),
        v_reset,
        need_time,
        need_weight,
    )
    none = weight.new_empty(0)
    return by_time if need_time else none, by_weight if need_weight else none.clone(), by_state


@operator(lambda time, index, weight, best, state, *_: (*_maximum(time, index, weight), torch.empty_like(state)))
def maximum_between(
    time: Tensor, index: Tensor, weight: Tensor, best: Tensor, state: Tensor, stop: Tensor, neuron: Sequence[float],
    t_end: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The ``Maximum`` of neurons without threshold where it is higher than ``best`` [B, N], up to ``stop`` [B], and their state
    then; as ``spikes_between``."""
    from .kernels.common import input_major
    from .kernels.readout import maximum_between as find

    found, end = find(time, index, input_major(weight), best, state, stop, LIF(*neuron), t_end)
    return *found, end


@operator(lambda time, index, before, *_: torch.empty_like(before))
def average(time: Tensor, index: Tensor, before: Tensor, neuron: Sequence[float], t_end: float, backend: str) -> Tensor:
    """[B, M] time average over [0, t_end] of the potential that each of M inputs raises through a weight of 1, added to what
    came ``before`` [B, M]."""
    return _backend(backend).average(time, index, before, LIF(*neuron), t_end)


@operator(lambda time, *_: torch.empty_like(time))
def average_adjoint(
    time: Tensor, index: Tensor, grad: Tensor, neuron: Sequence[float], t_end: float, backend: str
) -> Tensor:
    """dL/dtime [B, K] from ``grad`` [B, M], the gradient of what ``average`` returns."""
    return _backend(backend).average_adjoint(time, index, grad, LIF(*neuron), t_end)


def _with_kept(time: Tensor, *_: Any) -> tuple[Tensor, ...]:
    tape = rows(time, some())
    return *tape, time.new_empty((*tape[0].shape, some()), dtype=torch.float64)


@operator(_with_kept, *TAPE_PADDING, 0.0)
def recurrent_spikes(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor, delay: float, t_end: float, learns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The ``Tape`` of ``neurons`` [N, 5] of all kinds, which also receive their own spikes through ``recurrent`` [N, N];
    and what is kept of each spike, for the gradients of time constants if it ``learns`` these, and for the holds of V."""
    from .kernels import heterogeneous_forward

    tape, kept = heterogeneous_forward.forward(time, index, weight, recurrent, delay, neurons, t_end, learns)
    return *tape, kept


def _of_recurrent(time: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return time.new_empty(time.shape if rest[-1] else 0), *(torch.empty_like(x) for x in rest[:3])


@operator(_of_recurrent)
def recurrent_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor,
    at: Tensor, neuron: Tensor, slope: Tensor, after: Tensor, kept: Tensor, grad: Tensor, delay: float, t_end: float,
    need_time: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, recurrent, neurons) from ``grad`` [B, S] = dL/dat; the first is empty where not needed."""
    from .kernels import heterogeneous_adjoint

    tape = Tape(at, neuron, slope, after)
    by_time, by_weight, by_recurrent, by_neurons = heterogeneous_adjoint.adjoint(
        time, index, weight, recurrent, delay, neurons, tape, kept, grad, t_end, need_time
    )
    return by_time if need_time else time.new_empty(0), by_weight, by_recurrent, by_neurons


@operator(_with_kept, *TAPE_PADDING, 0.0)
def delayed_spikes(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, t_end: float, learns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The ``Tape`` of ``neurons`` [N, 5] of all kinds that receive each arrival after a ``delay`` [N, M] of their own, and what
    is kept of each spike, as of ``recurrent_spikes``."""
    from .kernels import delays, delays_apart

    layer, grid = (time, index, weight, delay, neurons), delays.grid_of(time, delay, neurons, t_end, learns)
    tape, kept = delays_apart.forward(*layer, t_end, learns) if grid is None else delays.forward(*layer, grid, t_end)
    return *tape, kept


def _of_delayed(time: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return time.new_empty(time.shape if rest[-1] else 0), *(torch.empty_like(x) for x in rest[:3])


@operator(_of_delayed)
def delayed_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor,
    at: Tensor, neuron: Tensor, slope: Tensor, after: Tensor, kept: Tensor, grad: Tensor, t_end: float, need_time: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, delay, neurons) from ``grad`` [B, S] = dL/dat; the first is empty where not needed."""
    from .kernels import delays, delays_adjoint, delays_apart

    layer, tape = (time, index, weight, delay, neurons), Tape(at, neuron, slope, after)
    grid = delays.grid_of(time, delay, neurons, t_end, kept.shape[2] > 0)
    if grid is None:
        by_time, *others = delays_apart.adjoint(*layer, tape, kept, grad, t_end, need_time)
    else:
        by_time, *others = delays_adjoint.adjoint(*layer, tape, grad, grid, t_end, need_time)
    by_weight, by_delay, by_neurons = others
    return by_time if need_time else time.new_empty(0), by_weight, by_delay, by_neurons


def _recurrent_between(time: Tensor, index: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    tape, state = _with_kept(time), rest[4]
    last = tape[1].new_empty(state.shape[1:])
    return *tape, torch.empty_like(state), last, last.new_empty(len(last))


@operator(_recurrent_between, *TAPE_PADDING, 0.0, 0.0, -1, -1)
def recurrent_between(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor, begin: Tensor, stop: Tensor, state: Tensor,
    own: Tensor, neuron: Tensor, delivered: Tensor, delay: float, learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The same over a ``Span``: also the state [6, B, N] at its end, the last spike [B, N] of each neuron, and how many spikes
    [B] have arrived."""
    from .kernels.heterogeneous_forward import forward_between

    span = begin, stop, state, own, neuron, delivered
    tape, kept, end, last, arrived = forward_between(time, index, weight, recurrent, delay, neurons, span, learns)
    return *tape, kept, end, last, arrived


def _of_recurrent_between(time: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_of_recurrent(time, index, *rest), torch.empty_like(rest[5]), torch.empty_like(rest[6])


@operator(_of_recurrent_between)
def recurrent_between_adjoint(
    time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor, begin: Tensor, stop: Tensor, state: Tensor,
    own: Tensor, neuron: Tensor, delivered: Tensor,
    at: Tensor, source: Tensor, slope: Tensor, after: Tensor, kept: Tensor, end: Tensor, grad: Tensor, grad_end: Tensor,
    delay: float, need_time: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, recurrent, neurons, state, own) from ``grad`` [B, S] = dL/dat and ``grad_end`` = dL/dend."""
    from .kernels.heterogeneous_adjoint import adjoint_between

    tape, span = Tape(at, source, slope, after), (begin, stop, state, own, neuron, delivered)
    by_time, by_weight, by_recurrent, by_neurons, by_state, by_own = adjoint_between(
        time, index, weight, recurrent, delay, neurons, tape, kept, grad, span, end, grad_end, need_time
    )
    return by_time if need_time else time.new_empty(0), by_weight, by_recurrent, by_neurons, by_state, by_own


def _unfolded(time: Tensor, index: Tensor, window: Sequence[int], *_) -> tuple[Tensor, ...]:
    height, width = Window.from_numbers(window).out
    shape = (time.shape[0] * height * width, some())
    integers = time.new_empty(shape, dtype=torch.int64)
    return time.new_empty(shape), integers, torch.empty_like(integers)


@operator(_unfolded, math.inf, -1, -1)
def unfold(time: Tensor, index: Tensor, window: Sequence[int], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """[B P, L] times of the arrivals that each position of a convolution sees, synapses, and columns of the arrivals."""
    return _backend(backend).unfold(time, index, Window.from_numbers(window))


def _folded(time: Tensor, index: Tensor, slope: Tensor, positions: int, *_) -> tuple[Tensor, ...]:
    at, neuron, slopes, source = rows(time[: time.shape[0] // positions], some())
    return at, neuron, slopes, source


@operator(_folded, *TAPE_PADDING)
def fold(
    time: Tensor, index: Tensor, slope: Tensor, positions: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[B, S] the spikes of all positions of each sample, sorted: times, neurons, slopes and places."""
    return _backend(backend).fold(time, index, slope, positions)


@operator(lambda grad, source, rows, columns, *_: grad.new_empty((rows, columns)))
def put_back(grad: Tensor, source: Tensor, rows: int, columns: int, backend: str) -> Tensor:
    """[rows, columns] sums of the gradients ``grad`` of all that came from each of the columns, by ``source``."""
    return _backend(backend).put_back(grad, source, (rows, columns))
