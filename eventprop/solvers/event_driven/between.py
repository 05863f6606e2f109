"""Layers over a part of the window, with the state at its begin as an input and the state at its end as an output: autograd
functions, on the CPU.

The part of a sample begins at its first arrival and ends at ``stop``, just before what arrives then. Both are fixed times: what
the time of an arrival at one of them does, eq. (10) says in the part that it begins.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eventprop.core.autograd import FirstOrder
from eventprop.core.neuron import LIF

from ..tape import Maximum, Tape
from . import operators


class SpikesBetween(FirstOrder):
    """A ``Tape``, whose times are differentiable, and the state [2, B, N] at the end."""

    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, state: Tensor, stop: Tensor, neuron: LIF, solver: Any
    ) -> tuple[Tensor, ...]:
        return operators.spikes_between(time, index, weight, state, stop, neuron.numbers)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, weight, _, stop, ctx.neuron, ctx.solver = inputs
        *tape, _ = output
        ctx.mark_non_differentiable(*tape[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(time, index, weight, stop, *tape)

    @staticmethod
    def backward(ctx, grad, *rest):
        time, index, weight, stop, *columns = ctx.saved_tensors
        tape = Tape(*columns)
        grad = torch.zeros_like(tape.time) if grad is None else grad
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        by_time, by_weight, by_state = _backward(ctx, time, index, weight, stop, tape, grad, rest[-1], ctx.neuron.v_th)
        return by_time, None, by_weight, by_state, None, None, None


class RecurrentBetween(FirstOrder):
    """Of neurons of all kinds, over a ``Span``: a ``Tape``, whose times are differentiable, what is kept of its spikes, and the
    state [6, B, N] at the end, the last spike [B, N] of each neuron, and how many spikes [B] have arrived."""

    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor, begin: Tensor, stop: Tensor,
        state: Tensor, own: Tensor, neuron: Tensor, delivered: Tensor, delay: float, learns: bool, solver: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return operators.recurrent_between(
            time, index, weight, recurrent, neurons, begin, stop, state, own, neuron, delivered, delay, learns
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.delay, _, ctx.solver = inputs
        ctx.mark_non_differentiable(*output[1:5], *output[6:])  # all but times and state
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[:6])

    @staticmethod
    def backward(ctx, grad, *rest):
        *inputs, time, neuron, slope, after, kept, end = ctx.saved_tensors
        grad = torch.zeros_like(time) if grad is None else grad
        grad_end = torch.zeros_like(end) if rest[4] is None else rest[4]
        slope, need_time = ctx.solver.effective_slope(slope), ctx.needs_input_grad[0]
        by_time, by_weight, by_recurrent, by_neurons, by_state, by_own = operators.recurrent_between_adjoint(
            *inputs, time, neuron, slope, after, kept, end, grad, grad_end, ctx.delay, need_time
        )
        by_time = by_time if need_time else None
        return by_time, None, by_weight, by_recurrent, by_neurons, None, None, by_state, by_own, *(None,) * 5


class MaximumBetween(FirstOrder):
    """A ``Maximum``, whose value [B, N] is differentiable, that is at least the ``best`` so far, and the state [2, B, N] at the
    end."""

    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, best: Tensor, state: Tensor, stop: Tensor, neuron: LIF, solver: Any
    ) -> tuple[Tensor, ...]:
        return operators.maximum_between(time, index, weight, best, state, stop, neuron.numbers, solver.t_end)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, weight, _, _, stop, ctx.neuron, ctx.solver = inputs
        *maximum, _ = output
        ctx.mark_non_differentiable(*maximum[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(time, index, weight, stop, *maximum)

    @staticmethod
    def backward(ctx, grad, *rest):
        time, index, weight, stop, *columns = ctx.saved_tensors
        maximum = Maximum(*columns)
        grad = torch.zeros_like(maximum.value) if grad is None else grad
        tape, order = observations(maximum, time.shape[1])
        by_time, by_weight, by_state = _backward(
            ctx, time, index, weight, stop, tape, grad.gather(1, order), rest[-1], 0.0
        )
        if by_time is not None:
            by_time = by_time + moved(maximum, grad, time.shape[1])
        return by_time, None, by_weight, grad.masked_fill(maximum.after >= 0, 0.0), by_state, None, None, None


def _backward(
    ctx, time: Tensor, index: Tensor, weight: Tensor, stop: Tensor, tape: Tape, grad: Tensor, grad_end: Tensor | None,
    v_reset: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of times, weights and state; None where not needed."""
    if grad_end is None:
        grad_end = torch.zeros((2, len(time), len(weight)), dtype=torch.float64)
    need_time, _, need_weight, *_ = ctx.needs_input_grad
    by_time, by_weight, by_state = operators.spikes_between_adjoint(
        time, index, weight, *tape, grad, stop, grad_end, v_reset, need_time, need_weight, ctx.neuron.numbers
    )
    return by_time if need_time else None, by_weight if need_weight else None, by_state


def observations(maximum: Maximum, arrivals: int) -> tuple[Tape, Tensor]:
    """A maximum is an observation of V: an entry of the adjoint's tape that adds dL/dV to p and resets nothing. In eq. (9) that
    is a spike with v_th = 0 and slope -1. The tape, and the neurons [B, N] in its order, among that many ``arrivals``."""
    never = maximum.after < 0
    order = maximum.after.masked_fill(never, arrivals).argsort(dim=1)  # padding last
    tape = Tape(
        time=maximum.time.gather(1, order),
        neuron=order.masked_fill(never.gather(1, order), -1),
        slope=-torch.ones_like(maximum.value),
        after=maximum.after.gather(1, order),
    )
    return tape, order


def moved(maximum: Maximum, grad: Tensor, arrivals: int) -> Tensor:
    """[B, K] what moves an observation: where an arrival ended the rise of V, dL/dt_j gains dL/dV, ``grad``, times the slope
    before it."""
    share = grad.new_zeros(len(grad), arrivals + 1)  # -1, for no arrival, becomes one arrival more
    return share.scatter_add(1, maximum.arrival % (arrivals + 1), grad * maximum.slope)[:, :-1]
