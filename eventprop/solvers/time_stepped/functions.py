"""What arrives in each step, and the spikes it makes, with their gradients: the autograd functions of the grid solver.

Shapes: B samples, M or N neurons, K spikes in the longest row, T steps, A of them with arrivals.
"""

from __future__ import annotations

from torch import Tensor

from eventprop.core.autograd import FirstOrder, specialized
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes
from eventprop.core.tensorlike import traced

from ..tape import Tape
from . import operators
from .grid import OnGrid, check_step


def effects(arrivals: Spikes, neuron: LIF, solver: OnGrid) -> tuple[Tensor, Tensor]:
    """The steps [A] that have arrivals, ascending, and the effects [2, A, B, M] of the arrivals at the end of each."""
    steps, values = _Effects.of(
        arrivals.time, arrivals.index.long(), arrivals.num_neurons, *specialized(neuron, solver)
    )
    return steps, values if arrivals.height == 1.0 else arrivals.height * values


def drive_of(arrivals: Spikes, weight: Tensor, neuron: LIF, solver: OnGrid) -> tuple[Tensor, Tensor]:
    """The steps [A] that have arrivals, ascending, and what these raise behind ``weight`` [N, M], [2, A, B, N]."""
    return _Drive.of(arrivals.time, arrivals.index.long(), arrivals.scaled(weight), *specialized(neuron, solver))


def spikes_of(drive: Tensor, steps: Tensor, neuron: LIF, solver: OnGrid) -> Tape:
    """What neurons emit that receive ``drive`` [2, A, B, N] in the ``steps`` [A]."""
    return Tape(*_SpikeTimes.of(drive, steps, *specialized(neuron, solver)))


def recurrent_spikes_of(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, neurons: Tensor, delay: float,
    solver: OnGrid,
) -> Tape:  # fmt: skip
    """What ``neurons`` [N, 5] of all kinds emit; as ``operators.grid_recurrent_spikes``."""
    learns = neurons.requires_grad or traced(neurons)  # gradients of the neurons may be asked for
    layer = (time, index, weight, delays, recurrent, neurons, delay)
    *tape, _ = _RecurrentSpikeTimes.of(*layer, learns, *specialized(solver))
    return Tape(*tape)


def _constants(neuron: LIF, solver: OnGrid, values: Tensor) -> tuple[list[float], str, str]:
    """The last arguments of the operators, for tensors where ``values`` are."""
    check_step(solver.dt, min(neuron.tau_mem, neuron.tau_syn), solver.scheme)
    return [*neuron.numbers, solver.t_end, solver.dt], solver.scheme, solver.backend_for(values.device)


class _Effects(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, inputs: int, neuron: LIF, solver: OnGrid) -> tuple[Tensor, Tensor]:
        return operators.grid_effects(time, index, inputs, *_constants(neuron, solver, time))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, _, ctx.neuron, ctx.solver = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(time, index, output[0])

    @staticmethod
    def backward(ctx, _, grad):
        time, index, steps = ctx.saved_tensors
        constants = _constants(ctx.neuron, ctx.solver, time)
        return operators.grid_effects_adjoint(time, index, steps, grad, *constants), None, None, None, None


class _Drive(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: OnGrid) -> tuple[Tensor, Tensor]:
        return operators.grid_drive(time, index, weight, *_constants(neuron, solver, time))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, weight, ctx.neuron, ctx.solver = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(time, index, weight, output[0])

    @staticmethod
    def backward(ctx, _, grad):
        need_time, _, need_weight, *_ = ctx.needs_input_grad
        time, index, weight, steps = ctx.saved_tensors
        by_time, by_weight = operators.grid_drive_adjoint(
            time, index, weight, steps, grad, need_time, need_weight, *_constants(ctx.neuron, ctx.solver, time)
        )
        return by_time if need_time else None, None, by_weight if need_weight else None, None, None


class _SpikeTimes(FirstOrder):
    @staticmethod
    def forward(drive: Tensor, steps: Tensor, neuron: LIF, solver: OnGrid) -> tuple[Tensor, ...]:
        return operators.grid_spikes(drive, steps, *_constants(neuron, solver, drive))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        drive, steps, ctx.neuron, ctx.solver = inputs
        ctx.width = drive.shape[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(steps, *output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None
        steps, *columns = ctx.saved_tensors
        tape = Tape(*columns)
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        constants = _constants(ctx.neuron, ctx.solver, grad)
        return operators.grid_adjoint(steps, *tape, grad, ctx.width, *constants), None, None, None


class _RecurrentSpikeTimes(FirstOrder):
    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, neurons: Tensor, delay: float,
        learns: bool, solver: OnGrid,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        backend = solver.backend_for(time.device)
        grid = (solver.t_end, solver.dt, solver.scheme)
        return operators.grid_recurrent_spikes(
            time, index, weight, delays, recurrent, neurons, delay, *grid, learns, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.delay, _, ctx.solver = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 9
        solver, delay = ctx.solver, ctx.delay
        by_time, *by_layer = operators.grid_recurrent_adjoint(
            *ctx.saved_tensors, grad, delay, solver.t_end, solver.dt, solver.scheme, solver.grazing, solver.min_slope,
            ctx.needs_input_grad[0], solver.backend_for(grad.device),
        )  # fmt: skip
        return by_time if ctx.needs_input_grad[0] else None, None, *by_layer, None, None, None
