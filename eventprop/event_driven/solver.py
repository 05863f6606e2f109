"""``EventDriven``: the exact solver in continuous time, and its autograd functions."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import choice
from ..learnable import LearnableLIF, parameters_of
from ..neuron import LIF
from ..observe import observe
from ..solver import READOUTS, Solver, check_weight, delayed_times
from ..spikes import Spikes
from ..tape import Maximum, Tape
from ..window import Window
from .patches import fold, unfold


@dataclass(frozen=True)
class EventDriven(Solver):
    """Solve a layer exactly, from event to event, and differentiate it by the adjoint method.

    A layer is at rest before its first arrival. Spike times solve V(t) = v_th to rounding error, every crossing is found,
    and backward memory grows with the number of spikes alone.

    Args:
        t_end: end of the simulated window in ms; spikes arriving later have no effect.
        grazing, min_slope, backend: as for every ``Solver``.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.
    """

    t_end: float
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"

    def spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF) -> Spikes:
        if isinstance(neuron, LearnableLIF):
            return self.recurrent_spikes(arrivals, weight, neuron, weight.new_zeros(weight.shape[0], 0))
        check_weight(arrivals, weight)
        weight = arrivals.scaled(weight)
        tape = Tape(*_SpikeTimes.apply(arrivals.time, arrivals.index.long(), weight, neuron, self))
        observe(tape.neuron, tape.after)
        return Spikes._trusted(tape.time, tape.neuron, (weight.shape[0],), tape.slope)

    def delayed_spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF, delay: Tensor) -> Spikes:
        check_weight(arrivals, weight)
        neurons, inputs = weight.shape
        time, source = delayed_times(arrivals, delay), arrivals.index.long()
        if isinstance(neuron, LearnableLIF):  # one neuron after the other
            table, none = parameters_of(neuron, weight), weight.new_zeros(1, 0)
            trains = [
                self._general(arrivals.reordered(time[:, :, n], source), weight[n, None], none, table[n, None], 0.0)
                for n in range(neurons)
            ]
            times, indices, slopes = zip(*((train.time, train.index, train.slope) for train in trains), strict=True)
        else:  # every neuron as a sample of its own
            rows, first = (len(time) * neurons, time.shape[1]), inputs * torch.arange(neurons, device=source.device)
            synapse = (source[:, None, :] + first[:, None]).masked_fill(source[:, None, :] < 0, -1).reshape(rows)
            time = time.transpose(1, 2).reshape(rows)
            apart = Spikes._trusted(time, synapse, (neurons * inputs,), None, arrivals.height).reordered(time, synapse)
            train = self.spikes(apart, weight.reshape(1, -1), neuron)
            assert train.slope is not None
            columns = (train.time, train.index, train.slope)
            times, indices, slopes = (x.unflatten(0, (-1, neurons)).unbind(1) for x in columns)
        own = [index.masked_fill(index == 0, n) for n, index in enumerate(indices)]
        time, index, slope = (torch.cat(list(parts), dim=1) for parts in (times, own, slopes))
        return Spikes._trusted(time, index, (neurons,), slope).reordered(time, index)

    def recurrent_spikes(
        self,
        arrivals: Spikes,
        weight: Tensor,
        neuron: LIF | LearnableLIF,
        recurrent_weight: Tensor,
        delay: float = 0.0,
    ) -> Spikes:
        """The spikes of a layer that also receives its own, ``delay`` ms later, through ``recurrent_weight`` [N, N], or [N, 0]
        for none; differentiable in the arrival times, the weights and the parameters of the neurons."""
        check_weight(arrivals, weight)
        if not self.uses_numba(weight.device) and isinstance(neuron, LIF) and delay > 0.0:
            return super().recurrent_spikes(arrivals, weight, neuron, recurrent_weight, delay)
        return self._general(arrivals, weight, recurrent_weight, parameters_of(neuron, weight), delay)

    def _general(
        self, arrivals: Spikes, weight: Tensor, recurrent_weight: Tensor, neurons: Tensor, delay: float
    ) -> Spikes:
        """The spikes of neurons of all kinds, ``neurons`` [N, 5] with the columns of ``LearnableLIF.table``."""
        if not self.uses_numba(weight.device):
            raise ValueError(
                f"LearnableLIF, and SpikingRecurrent without delay, need CPU tensors and backend 'auto' or 'numba', got "
                f"{weight.device} and {self.backend!r}; SpikingLinear, and SpikingRecurrent with a delay, of LIF run everywhere"
            )
        weight = arrivals.scaled(weight)
        time, index = arrivals.time, arrivals.index.long()
        tape = Tape(*_RecurrentSpikeTimes.apply(time, index, weight, recurrent_weight, neurons, delay, self))
        observe(tape.neuron, tape.after)
        return Spikes._trusted(tape.time, tape.neuron, (weight.shape[0],), tape.slope)

    def convolution(
        self, arrivals: Spikes, weight: Tensor, neuron: LIF, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Spikes:
        window = Window.of(arrivals, weight, stride, padding)
        backend = self._backend(weight.device)
        emitted = self.spikes(unfold(arrivals, window, backend), weight.flatten(1), neuron)
        return fold(emitted, window, backend)

    def readout(self, arrivals: Spikes, weight: Tensor, neuron: LIF, reduce: str) -> Tensor:
        check_weight(arrivals, weight)
        weight = arrivals.scaled(weight)
        choice("reduce", reduce, READOUTS)
        if reduce == "max":
            maximum = Maximum(*_MaximumVoltage.apply(arrivals.time, arrivals.index.long(), weight, neuron, self))
            observe(maximum.after, maximum.arrival)
            return maximum.value
        received = _Average.apply(arrivals.time, arrivals.index.long(), weight.shape[1], neuron, self)
        with torch.autocast(weight.device.type, enabled=False):
            return received @ weight.t()

    def time_of_maximum(self, arrivals: Spikes, weight: Tensor, neuron: LIF) -> Tensor:
        """[B, N] when the potential of each neuron without threshold is highest; -inf where it never rises above rest. As far
        as an arrival ends its rise, differentiable in the time of that arrival."""
        time, index = arrivals.time, arrivals.index.long()
        found = self._backend(weight.device).maximum(
            time.detach(), index, weight.detach().t().contiguous(), neuron, self.t_end
        )
        observe(found.after, found.arrival)
        if not time.shape[1]:
            return found.time
        return torch.where(found.arrival >= 0, time.gather(1, found.arrival.clamp(min=0)), found.time)

    def _backend(self, device: torch.device) -> ModuleType:
        if self.uses_numba(device):
            from . import kernels  # imported here: numba is slow to import

            return kernels
        from . import reference

        return reference


def _remember(ctx, inputs, output) -> None:
    """Save what the backward passes of the two functions below need; only their first output is differentiable."""
    time, index, weight, ctx.neuron, ctx.solver = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(time, index, weight, *output)


def _where_needed(ctx, grad_time: Tensor, grad_weight_t: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the two functions' inputs, from those of the arrival times and of the transposed weight."""
    need_time, _, need_weight, *_ = ctx.needs_input_grad
    return grad_time if need_time else None, None, grad_weight_t.t() if need_weight else None, None, None


class _SpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        return solver._backend(weight.device).forward(time, index, weight.t().contiguous(), neuron, solver.t_end)

    setup_context = staticmethod(_remember)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *tape = ctx.saved_tensors
        tape = Tape(*tape)
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        grad_time, grad_weight_t = ctx.solver._backend(weight.device).adjoint(
            time, index, weight.t().contiguous(), tape, grad, ctx.neuron, ctx.neuron.v_th, ctx.solver.t_end,
            *ctx.needs_input_grad[0:3:2],
        )  # fmt: skip
        return _where_needed(ctx, grad_time, grad_weight_t)


class _RecurrentSpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(
        time: Tensor,
        index: Tensor,
        weight: Tensor,
        recurrent: Tensor,
        neurons: Tensor,
        delay: float,
        solver: EventDriven,
    ) -> tuple[Tensor, ...]:
        from .kernels import general  # imported here: numba is slow to import

        return general.forward(time, index, weight.t(), recurrent.t(), delay, neurons, solver.t_end)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.delay, ctx.solver = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        from .kernels import general

        time, index, weight, recurrent, neurons, *columns = ctx.saved_tensors
        tape = Tape(*columns)
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        by_time, by_weight, by_recurrent, by_neurons = general.adjoint(
            time, index, weight.t(), recurrent.t(), ctx.delay, neurons, tape, grad, ctx.solver.t_end
        )
        return by_time, None, by_weight.t(), by_recurrent.t(), by_neurons, None, None


class _MaximumVoltage(torch.autograd.Function):
    """A maximum is an observation of V: an entry of the adjoint's tape that adds dL/dV to p and resets nothing. In
    eq. (9) that is a spike with v_th = 0 and slope -1. Where an arrival ended the rise of V, the observation moves with
    that arrival: dL/dt_j gains dL/dV times the slope before it."""

    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        backend = solver._backend(weight.device)
        return backend.maximum(time, index, weight.t().contiguous(), neuron, solver.t_end)

    setup_context = staticmethod(_remember)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *maximum = ctx.saved_tensors
        maximum = Maximum(*maximum)
        never = maximum.after < 0
        order = maximum.after.masked_fill(never, time.shape[1]).argsort(dim=1)  # padding last
        tape = Tape(
            time=maximum.time.gather(1, order),
            neuron=order.masked_fill(never.gather(1, order), -1),
            slope=-torch.ones_like(grad),
            after=maximum.after.gather(1, order),
        )
        grad_time, grad_weight_t = ctx.solver._backend(weight.device).adjoint(
            time, index, weight.t().contiguous(), tape, grad.gather(1, order), ctx.neuron, 0.0, ctx.solver.t_end,
            *ctx.needs_input_grad[0:3:2],
        )  # fmt: skip
        if grad_time.shape[1]:
            moved = torch.where(maximum.arrival >= 0, grad * maximum.slope, 0.0)
            grad_time = grad_time.scatter_add(1, maximum.arrival.clamp(min=0), moved)
        return _where_needed(ctx, grad_time, grad_weight_t)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, inputs: int, neuron: LIF, solver: EventDriven) -> Tensor:
        return solver._backend(time.device).average(time, index, inputs, neuron, solver.t_end)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, _, ctx.neuron, ctx.solver = inputs
        ctx.save_for_backward(time, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        time, index = ctx.saved_tensors
        backend = ctx.solver._backend(time.device)
        return backend.average_adjoint(time, index, grad, ctx.neuron, ctx.solver.t_end), None, None, None, None


for _function in (_SpikeTimes, _RecurrentSpikeTimes, _MaximumVoltage, _Average):
    # torch asks for it in every call, and to work it out takes a good part of a small step. Type checkers do not know that
    # functions may have this attribute (PEP 362)
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore
