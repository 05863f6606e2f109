"""``TimeStepped``: the solver on a time grid, and the rule by which it passes gradients on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.checks import bounds, choice, finite_entries, is_finite, positive
from eventprop.core.learnable import LearnableLIF, parameters_of
from eventprop.core.neuron import LIF, flow
from eventprop.core.observe import observe
from eventprop.core.spikes import Spikes, whole_steps

from ..event_driven import EventDriven
from ..problem import Convolution, Dense, LinearMap, Problem
from ..solver import Solver
from ..support import EVERYWHERE, Kind, Support
from ..tape import Tape, check_finite
from .functions import drive_of, effects, recurrent_spikes_of, spikes_of
from .grid import SCHEMES, Grid, dense
from .grid_spikes import GridSpikes


@dataclass(frozen=True)
class BackwardRule:
    """How gradients pass a layer on a grid. This one is exact: spikes are differentiable in their times.

    A rule of your own derives from it, and changes what it needs to: what a layer emits, or what layers and readouts
    make of that. The forward pass stays that of the solver.

    Attributes:
        name: of the rule's column in the table of what solvers solve; empty for that of the solver.
        supports: what it has gradients for; None for all that the solver solves.
    """

    name: ClassVar[str] = ""
    supports: ClassVar[Support | None] = None

    def check(self, solver: TimeStepped) -> None:
        """Raise unless this rule goes with the options of the solver."""

    def spikes(self, steps: Tensor, drive: Tensor, neuron: LIF, solver: TimeStepped) -> GridSpikes:
        """What neurons emit that receive ``drive`` [2, A, B, *shape of the layer], (psp, psc) at the end of ``steps`` [A]."""
        tape = spikes_of(drive.flatten(3), steps, neuron, solver)
        observe(tape.neuron, tape.after)
        return GridSpikes._on_grid(tape.time, tape.neuron, tuple(drive.shape[3:]), tape.slope, solver.dt, solver.t_end)

    def recurrent_spikes(self, problem: Problem, arrivals: Spikes, solver: TimeStepped) -> GridSpikes:
        """What a fully connected layer emits whose neurons receive its own spikes, or differ, or whose synapses have delays."""
        tape = spikes_of_layer(problem, arrivals, solver)
        observe(tape.neuron, tape.after)
        assert isinstance(problem.synapses, Dense)
        shape = (len(problem.synapses.weight),)
        return GridSpikes._on_grid(tape.time, tape.neuron, shape, tape.slope, solver.dt, solver.t_end)

    def effects(self, arrivals: Spikes, neuron: LIF, solver: TimeStepped) -> tuple[Tensor, Tensor]:
        """The steps [A] with arrivals, and what these have raised through a weight of 1 by the end of each, [2, A, B, M]."""
        return effects(arrivals, neuron, solver)

    def drive(self, arrivals: Spikes, weight: Tensor, neuron: LIF, solver: TimeStepped) -> tuple[Tensor, Tensor]:
        """The same behind ``weight`` [N, M]; on the CPU from arrival to arrival, without what arrives in each step."""
        return drive_of(arrivals, weight, neuron, solver)

    def potential(self, problem: Problem, arrivals: Spikes, solver: TimeStepped) -> Tensor:
        """What is read out of the potential of neurons without threshold."""
        if solver.scheme == "exponential":  # given the spike times, the readout needs no grid
            return EventDriven(solver.t_end, backend=solver.backend).potential_of(problem, arrivals)
        weight, neuron, readout = problem.to_read_out()
        potential = solver.free_potential(arrivals, weight, neuron)
        return potential.amax(0).clamp(min=0.0) if readout.reduce == "max" else potential.mean(0)


EULER: Support = {
    Kind(): EVERYWHERE,
    Kind(recurrence="delayed"): EVERYWHERE,
    Kind("convolution"): EVERYWHERE,
    Kind("linear map"): EVERYWHERE,
    Kind(output="max or mean"): EVERYWHERE,
}
EXPONENTIAL: Support = {
    **EULER,
    Kind(neurons="LearnableLIF"): EVERYWHERE,
    Kind(recurrence="delayed", neurons="LearnableLIF"): EVERYWHERE,
    Kind("delayed"): EVERYWHERE,
    Kind("delayed", neurons="LearnableLIF"): EVERYWHERE,
    Kind(output="other readout"): EVERYWHERE,
}


@dataclass(frozen=True)
class TimeStepped(Solver):
    """Solve a layer on a time grid. Any linear map can be its synapses, and cost grows with the number of steps.

    ``scheme="exponential"`` advances each neuron by its closed-form flow, which has no discretisation error between
    spikes. Of what arrives in a step it sees the sum of the effects at the end, and takes it for one arrival at the time that
    explains them. Every crossing of what follows is found, wherever in the step it lies and however often a neuron spikes
    there. Backward is the exact gradient of what forward computes, at any ``dt``. Against ``EventDriven`` there is no error
    where the arrivals of each step come at one time; otherwise it falls with the number of steps in which a neuron spikes
    among arrivals at several times. ``eventprop.tools.convergence`` measures it.

    ``scheme="euler"`` is the classic discretisation: explicit Euler steps, spikes on grid points, at most one per step
    and a reset to 0, and for the backward pass the adjoint equations, discretised in the same way. Its gradient is *not*
    the gradient of what forward computes; it is right only as dt -> 0.

    Args:
        t_end: end of the simulated window in ms, a whole number of steps; spikes arriving later have no effect.
        dt: length of a step in ms.
        scheme: "exponential" or "euler".
        grazing, min_slope, backend: as for every ``Solver``.
        rule: how gradients pass a layer; the exact one by default.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.
    """

    begin: ClassVar[float] = 0.0
    variants: ClassVar[Mapping[str, Support]] = {
        "TimeStepped": EXPONENTIAL,
        'TimeStepped(scheme="euler")': EULER,
    }

    t_end: float
    dt: float
    scheme: str = "exponential"
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"
    rule: BackwardRule = BackwardRule()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dt", positive("dt", self.dt))
        choice("scheme", self.scheme, SCHEMES)
        whole_steps(self.t_end, self.dt)
        self.rule.check(self)

    @property
    def step(self) -> float:
        return self.dt

    @property
    def variant(self) -> str:
        exact = "TimeStepped" if self.scheme == "exponential" else 'TimeStepped(scheme="euler")'
        return self.rule.name or exact

    @property
    def supports(self) -> Support:
        return self.variants[self.variant] if self.rule.supports is None else self.rule.supports

    def spikes_of(self, problem: Problem, arrivals: Spikes) -> Spikes:
        synapses, neuron = problem.synapses, problem.neuron
        differs = problem.recurrence is not None or isinstance(neuron, LearnableLIF)
        if isinstance(synapses, Dense) and (differs or synapses.delay is not None):
            return self.rule.recurrent_spikes(problem, arrivals, self)
        assert isinstance(neuron, LIF)
        if isinstance(synapses, Dense):
            steps, drive = self.rule.drive(arrivals, synapses.weight, neuron, self)
        else:
            function = synapses.function if isinstance(synapses, LinearMap) else _convolution(synapses, arrivals)
            steps, drive = self.drive_behind(function, arrivals, neuron)
        return self.rule.spikes(steps, drive, neuron, self)

    def potential_of(self, problem: Problem, arrivals: Spikes) -> Tensor:
        return self.rule.potential(problem, arrivals, self)

    def drive_behind(
        self, synapses: Callable[[Tensor], Tensor], arrivals: Spikes, neuron: LIF
    ) -> tuple[Tensor, Tensor]:
        """The steps [A] with arrivals, and what their effects are behind ``synapses``, any linear map of [batch, *shape] to
        [batch, *shape of the layer]: [2, A, B, *shape of the layer]."""
        steps, values = self.rule.effects(arrivals, neuron, self)
        shape = arrivals._shape if isinstance(arrivals, GridSpikes) else (arrivals.num_neurons,)
        with torch.autocast(arrivals.device.type, enabled=False):
            drive = synapses(values.reshape(math.prod(values.shape[:3]), *shape))
        return steps, drive.unflatten(0, tuple(values.shape[:3]))

    def free_potential(self, arrivals: Spikes, weight: Tensor, neuron: LIF) -> Tensor:
        """[T, B, N] potential, at the end of each step, of neurons without threshold."""
        steps, drive = self.drive_behind(lambda x: F.linear(x.flatten(1), weight), arrivals, neuron)
        grid = Grid.of(neuron, self.t_end, self.dt, self.scheme)
        v = i = drive.new_zeros(drive.shape[2:])
        potential = []
        for psp, psc in dense(steps, drive, grid.steps).unbind(1):
            v, i = flow(v, i, grid.a, grid.s, grid.phi)
            v, i = v + psp, i + psc
            potential.append(v)
        check_finite(is_finite(v))  # what is not stays so
        return torch.stack(potential)


def spikes_of_layer(problem: Problem, arrivals: Spikes, solver: TimeStepped) -> Tape:
    """What a fully connected layer of any kind emits."""
    synapses, recurrence = problem.synapses, problem.recurrence
    assert isinstance(synapses, Dense)
    weight = synapses.weight
    delays = weight.new_zeros(len(weight), 0) if synapses.delay is None else synapses.delay
    finite_entries("delay", delays)
    if bounds(delays)[0] < 0.0:
        raise ValueError(f"delay must be >= 0, got {bounds(delays)[0]}")
    recurrent, delay = (weight.new_zeros(len(weight), 0), 0.0) if recurrence is None else recurrence
    received = arrivals.time, arrivals.index.long(), arrivals.scaled(weight)
    return recurrent_spikes_of(*received, delays, recurrent, parameters_of(problem.neuron, weight), delay, solver)


def _convolution(synapses: Convolution, arrivals: Spikes) -> Callable[[Tensor], Tensor]:
    """A convolution of the effects of ``arrivals``, as a map of [batch, *their shape]."""
    window, (weight, stride, padding) = synapses.window(arrivals), synapses
    return lambda x: F.conv2d(x.reshape(-1, window.channels, *window.image), weight, None, stride, padding)
