"""``EventDriven``: the exact solver in continuous time, and its autograd functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eventprop.core.autograd import FirstOrder, specialized
from eventprop.core.checks import finite_entries
from eventprop.core.learnable import LearnableLIF, parameters_of
from eventprop.core.neuron import LIF
from eventprop.core.observe import observe
from eventprop.core.spikes import Spikes
from eventprop.core.tensorlike import traced

from .. import readouts
from ..problem import Convolution, Dense, Problem
from ..solver import Solver, delayed_times, spikes_by_passes
from ..support import CPU, EVERYWHERE, Kind, Support, UnsupportedError
from ..tape import Maximum, Tape
from . import operators, stream
from .between import moved, observations
from .patches import fold, unfold

# what is solved in chunks of time
STREAMED = (
    *(Kind(recurrence=r, neurons=n) for r in ("none", "delayed", "instant") for n in ("LIF", "LearnableLIF")),
    Kind("convolution"),
    Kind(output="max or mean"),
)


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

    variants: ClassVar[Mapping[str, Support]] = {
        "EventDriven": {
            Kind(): EVERYWHERE,
            Kind(neurons="LearnableLIF"): CPU,
            Kind(recurrence="delayed"): EVERYWHERE,
            Kind(recurrence="delayed", neurons="LearnableLIF"): CPU,
            Kind(recurrence="instant"): CPU,
            Kind(recurrence="instant", neurons="LearnableLIF"): CPU,
            Kind("delayed"): EVERYWHERE,
            Kind("delayed", neurons="LearnableLIF"): CPU,
            Kind("convolution"): EVERYWHERE,
            Kind(output="max or mean"): EVERYWHERE,
            Kind(output="other readout"): EVERYWHERE,
        }
    }

    t_end: float
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"

    def spikes_of(self, problem: Problem, arrivals: Spikes) -> Spikes:
        synapses, neuron, recurrence = problem.synapses, problem.neuron, problem.recurrence
        if isinstance(synapses, Convolution):
            window, backend = synapses.window(arrivals), self.backend_for(arrivals.device)
            inside = problem._replace(synapses=Dense(synapses.weight.flatten(1)))
            return fold(self.spikes_of(inside, unfold(arrivals, window, backend)), window, backend)
        assert isinstance(synapses, Dense)
        if synapses.delay is not None:
            return self._delayed(problem, arrivals, synapses.weight, synapses.delay)
        weight = arrivals.scaled(synapses.weight)
        received = arrivals.time, arrivals.index.long(), weight
        if isinstance(neuron, LIF) and recurrence is None:
            tape = Tape(*_SpikeTimes.of(*received, *specialized(neuron, self)))
        elif self.backend_for(arrivals.device) != "numba":
            return spikes_by_passes(self, problem, arrivals)
        else:
            back, delay = (weight.new_zeros(len(weight), 0), 0.0) if recurrence is None else recurrence
            neurons = parameters_of(neuron, weight)
            tape = self._heterogeneous(*received, back, neurons, delay)
        observe(tape.neuron, tape.after)
        return Spikes._trusted(tape.time, tape.neuron, (len(weight),), tape.slope)

    def _heterogeneous(self, *layer) -> Tape:
        """The spikes of neurons of all kinds; ``layer`` as for ``operators.recurrent_spikes``."""
        neurons = layer[4]
        learns = neurons.requires_grad or traced(neurons)  # gradients of the neurons may be asked for
        *tape, _ = _RecurrentSpikeTimes.of(*layer, learns, *specialized(self))
        return Tape(*tape)

    def _delayed(self, problem: Problem, arrivals: Spikes, weight: Tensor, delay: Tensor) -> Spikes:
        """The spikes of a layer each of whose neurons receives the arrivals at times of its own."""
        finite_entries("delay", delay, 0.0)
        if self.backend_for(arrivals.device) != "numba":
            return self._delayed_apart(problem, arrivals, weight, delay)
        neurons = parameters_of(problem.neuron, weight.new_empty(len(weight), 0, dtype=torch.float64))
        received = arrivals.time, arrivals.index.long(), arrivals.scaled(weight)
        learns = isinstance(problem.neuron, LearnableLIF)
        *columns, _ = _DelayedSpikeTimes.of(*received, delay, neurons, learns, *specialized(self))
        tape = Tape(*columns)
        observe(tape.neuron, tape.after)
        return Spikes._trusted(tape.time, tape.neuron, (len(weight),), tape.slope)

    def _delayed_apart(self, problem: Problem, arrivals: Spikes, weight: Tensor, delay: Tensor) -> Spikes:
        """The same, with every neuron as a sample of its own."""
        neurons, inputs = weight.shape
        time, source = delayed_times(arrivals, delay), arrivals.index.long()
        rows, first = (len(time) * neurons, time.shape[1]), inputs * torch.arange(neurons, device=source.device)
        synapse = (source[:, None, :] + first[:, None]).masked_fill(source[:, None, :] < 0, -1).reshape(rows)
        time = time.transpose(1, 2).reshape(rows)
        apart = Spikes._trusted(time, synapse, (neurons * inputs,), None, arrivals.height).reordered(time, synapse)
        train = self.spikes_of(problem._replace(synapses=Dense(weight.reshape(1, -1))), apart)
        assert train.slope is not None
        columns = (train.time, train.index, train.slope)
        times, indices, slopes = (x.unflatten(0, (-1, neurons)).unbind(1) for x in columns)
        own = [index.masked_fill(index == 0, n) for n, index in enumerate(indices)]
        time, index, slope = (torch.cat(list(parts), dim=1) for parts in (times, own, slopes))
        return Spikes._trusted(time, index, (neurons,), slope).reordered(time, index)

    def potential_of(self, problem: Problem, arrivals: Spikes) -> Tensor:
        weight, neuron, readout = problem.to_read_out()
        weight = arrivals.scaled(weight)
        received = arrivals.time, arrivals.index.long()
        if readout.reduce == "max" and readout.tau is None:
            maximum = Maximum(*_MaximumVoltage.of(*received, weight, *specialized(neuron, self)))
            observe(maximum.after, maximum.arrival)
            return maximum.value
        if readout.reduce == "mean" and readout.tau is None:
            return self._mean(arrivals, weight, neuron)[0]
        tau = readout.tau or (weight.new_tensor(neuron.tau_mem), weight.new_tensor(neuron.tau_syn))
        if readout.times is not None:
            return readouts.at_times(arrivals, weight, *tau, readout.times)
        if readout.reduce == "max":
            return readouts.at_own_times(
                arrivals, weight, *tau, self._time_of_maximum(arrivals, weight, torch.stack(tau))
            )
        return readouts.mean(arrivals, weight, *tau, self.t_end, readout.tau_weight or math.inf)

    def _mean(
        self, arrivals: Spikes, weight: Tensor, neuron: LIF, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, N] the time average of the potential, and the share [B, M] that each input has in it, through a weight of 1; with
        the share of what arrived ``before``."""
        if before is None:
            before = weight.new_zeros(
                arrivals.time.shape[0], weight.shape[1]
            )  # no len(), of which torch.export knows one
        share = _Average.of(arrivals.time, arrivals.index.long(), before, *specialized(neuron, self))
        with torch.autocast(weight.device.type, enabled=False):
            return share @ weight.t(), share

    def _time_of_maximum(self, arrivals: Spikes, weight: Tensor, tau: Tensor) -> Tensor:
        """[B, N] when the potential of each neuron without threshold is highest; -inf where it never rises above rest. As far
        as an arrival ends its rise, differentiable in the time of that arrival; not in ``tau`` [2], tau_mem and tau_syn."""
        time, index = arrivals.time, arrivals.index.long()
        backend = self.backend_for(weight.device)
        with torch.no_grad():
            found = Maximum(*operators.maximum_by_tau(time, index, weight, tau, self.t_end, backend))
        observe(found.after, found.arrival)
        arriving = torch.cat([time, time.new_zeros(time.shape[0], 1)], dim=1)  # -1, for no arrival, is one arrival more
        return torch.where(found.arrival >= 0, arriving.gather(1, found.arrival % arriving.shape[1]), found.time)

    def check_stream(self, problem: Problem, device: torch.device | None = None) -> None:
        kind, cpu = problem.kind(self.step), self.backend != "torch" and (device is None or device.type == "cpu")
        if kind not in STREAMED or not cpu:
            raise UnsupportedError(
                f"a stream is solved on the CPU by the backend 'numba', and not for all layers; got {kind}, {self} and "
                f"{device or 'some device'}; give the network the whole recording at once"
            )

    def solve_chunk(self, problem: Problem, arrivals: Spikes, carried: Any, last: bool) -> tuple[Any, Any]:
        self.check_stream(problem, arrivals.device)
        return stream.solve(self, problem, arrivals, carried, last)

    def _constants(self, neuron: LIF, time: Tensor) -> tuple[list[float], float, str]:
        """The last arguments of the operators."""
        return neuron.numbers, self.t_end, self.backend_for(time.device)


def _remember(ctx, inputs, output) -> None:
    """Save what the backward passes of the two functions below need; only their first output is differentiable."""
    time, index, weight, ctx.neuron, ctx.solver = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(time, index, weight, *output)


def _backward(ctx, time: Tensor, index: Tensor, weight: Tensor, tape: Tape, grad: Tensor, v_reset: float):
    """The gradients of the two functions' inputs; None where not needed."""
    need_time, _, need_weight, *_ = ctx.needs_input_grad
    grad_time, grad_weight = operators.spikes_adjoint(
        time, index, weight, *tape, grad, v_reset, need_time, need_weight, *ctx.solver._constants(ctx.neuron, time)
    )
    return grad_time if need_time else None, None, grad_weight if need_weight else None, None, None


class _SpikeTimes(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        return operators.spikes(time, index, weight, *solver._constants(neuron, time))

    setup_context = staticmethod(_remember)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *columns = ctx.saved_tensors
        tape = Tape(*columns)
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        return _backward(ctx, time, index, weight, tape, grad, ctx.neuron.v_th)


class _RecurrentSpikeTimes(FirstOrder):
    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, recurrent: Tensor, neurons: Tensor, delay: float, learns: bool,
        solver: EventDriven,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return operators.recurrent_spikes(time, index, weight, recurrent, neurons, delay, solver.t_end, learns)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.delay, _, ctx.solver = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 8
        time, index, weight, recurrent, neurons, *columns, kept = ctx.saved_tensors
        tape = Tape(*columns)
        tape = tape._replace(slope=ctx.solver.effective_slope(tape.slope))
        by_time, by_weight, by_recurrent, by_neurons = operators.recurrent_adjoint(
            time,
            index,
            weight,
            recurrent,
            neurons,
            *tape,
            kept,
            grad,
            ctx.delay,
            ctx.solver.t_end,
            ctx.needs_input_grad[0],
        )
        return by_time if ctx.needs_input_grad[0] else None, None, by_weight, by_recurrent, by_neurons, None, None, None


class _DelayedSpikeTimes(FirstOrder):
    @staticmethod
    def forward(
        time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, learns: bool, solver: EventDriven
    ) -> tuple[Tensor, ...]:
        return operators.delayed_spikes(time, index, weight, delay, neurons, solver.t_end, learns)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, _, ctx.solver = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        *layer, at, neuron, slope, after, kept = ctx.saved_tensors
        tape = Tape(at, neuron, ctx.solver.effective_slope(slope), after)
        by_time, by_weight, by_delay, by_neurons = operators.delayed_adjoint(
            *layer, *tape, kept, grad, ctx.solver.t_end, ctx.needs_input_grad[0]
        )
        return by_time if ctx.needs_input_grad[0] else None, None, by_weight, by_delay, by_neurons, None, None


class _MaximumVoltage(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        return operators.maximum(time, index, weight, *solver._constants(neuron, time))

    setup_context = staticmethod(_remember)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *columns = ctx.saved_tensors
        maximum = Maximum(*columns)
        tape, order = observations(maximum, time.shape[1])
        grad_time, *rest = _backward(ctx, time, index, weight, tape, grad.gather(1, order), 0.0)
        if grad_time is not None:
            grad_time = grad_time + moved(maximum, grad, time.shape[1])
        return grad_time, *rest


class _Average(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, before: Tensor, neuron: LIF, solver: EventDriven) -> Tensor:
        return operators.average(time, index, before, *solver._constants(neuron, time))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, _, ctx.neuron, ctx.solver = inputs
        ctx.save_for_backward(time, index)

    @staticmethod
    def backward(ctx, grad):
        time, index = ctx.saved_tensors
        by_time = operators.average_adjoint(time, index, grad, *ctx.solver._constants(ctx.neuron, time))
        return by_time, None, grad, None, None
