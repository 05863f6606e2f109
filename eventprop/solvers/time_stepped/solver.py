"""``TimeStepped``: the solver on a time grid, and its autograd functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.checks import choice, is_finite, positive
from eventprop.core.learnable import LearnableLIF, parameters_of
from eventprop.core.neuron import LIF, flow
from eventprop.core.observe import observe
from eventprop.core.spikes import Spikes, whole_steps

from ..event_driven import EventDriven
from ..solver import READOUTS, Solver, check_arrivals, check_weight, delayed_times
from ..tape import check_finite
from ..window import Window
from .functions import drive_of, effects, spikes_of, spikes_of_individuals
from .grid import SCHEMES, Grid, GridSpikes, check_step, dense


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

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.
    """

    begin: ClassVar[float] = 0.0
    t_end: float
    dt: float
    scheme: str = "exponential"
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dt", positive("dt", self.dt))
        choice("scheme", self.scheme, SCHEMES)
        whole_steps(self.t_end, self.dt)
        object.__setattr__(self, "exact", EventDriven(self.t_end, backend=self.backend))

    def spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF) -> GridSpikes:
        check_weight(arrivals, weight)
        if isinstance(neuron, LearnableLIF):
            return self._spikes_of_individuals(arrivals, arrivals.time[:, :, None], weight, neuron)
        return self._emitted(*self._drive_through(weight, arrivals, neuron), neuron)

    def spikes_behind(self, synapses: Callable[[Tensor], Tensor], arrivals: Spikes, neuron: LIF) -> GridSpikes:
        """The spikes of neurons behind ``synapses``, any linear map of [batch, *shape] to [batch, *shape of the layer]."""
        return self._emitted(*self._drive(synapses, arrivals, neuron), neuron)

    def _emitted(self, steps: Tensor, drive: Tensor, neuron: LIF) -> GridSpikes:
        tape = spikes_of(drive.flatten(3), steps, neuron, self)
        observe(tape.neuron, tape.after)
        return GridSpikes._on_grid(tape.time, tape.neuron, tuple(drive.shape[3:]), tape.slope, self.dt, self.t_end)

    def delayed_spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF, delay: Tensor) -> GridSpikes:
        check_weight(arrivals, weight)
        return self._spikes_of_individuals(arrivals, delayed_times(arrivals, delay), weight, neuron)

    def _spikes_of_individuals(
        self, arrivals: Spikes, time: Tensor, weight: Tensor, neuron: LIF | LearnableLIF
    ) -> GridSpikes:
        """The spikes of neurons with parameters of their own, for each of which the arrivals come at a ``time`` [B, K, N] of
        its own, or [B, K, 1]."""
        if self.scheme != "exponential":
            raise ValueError(
                f"scheme must be 'exponential' for LearnableLIF and for delays of synapses, got {self.scheme!r}; EventDriven "
                f"solves these too"
            )
        self.check_begin(arrivals)
        received = time, arrivals.index.long(), arrivals.scaled(weight)
        tape = spikes_of_individuals(*received, parameters_of(neuron, weight), self)
        observe(tape.neuron, tape.after)
        return GridSpikes._on_grid(tape.time, tape.neuron, (len(weight),), tape.slope, self.dt, self.t_end)

    def recurrent_spikes(
        self,
        arrivals: Spikes,
        weight: Tensor,
        neuron: LIF | LearnableLIF,
        recurrent_weight: Tensor,
        delay: float,
    ) -> Spikes:
        if delay < self.dt:
            raise ValueError(
                f"delay must be at least dt={self.dt} with TimeStepped, got {delay}; choose a smaller dt or EventDriven"
            )
        return super().recurrent_spikes(arrivals, weight, neuron, recurrent_weight, delay)

    def convolution(
        self, arrivals: Spikes, weight: Tensor, neuron: LIF, stride: tuple[int, int], padding: tuple[int, int]
    ) -> GridSpikes:
        window = Window.of(arrivals, weight, stride, padding)
        return self.spikes_behind(
            lambda x: F.conv2d(x.reshape(-1, window.channels, *window.image), weight, None, stride, padding),
            arrivals,
            neuron,
        )

    def readout(self, arrivals: Spikes, weight: Tensor, neuron: LIF, reduce: str) -> Tensor:
        check_weight(arrivals, weight)
        choice("reduce", reduce, READOUTS)
        self.check_begin(arrivals)
        if self.scheme == "exponential":  # given the spike times, the readout needs no grid
            return self.exact.readout(arrivals, weight, neuron, reduce)
        potential = self.free_potential(arrivals, weight, neuron)
        return potential.amax(0).clamp(min=0.0) if reduce == "max" else potential.mean(0)

    def free_potential(self, arrivals: Spikes, weight: Tensor, neuron: LIF) -> Tensor:
        """[T, B, N] potential, at the end of each step, of neurons without threshold."""
        steps, drive = self._drive(lambda x: F.linear(x.flatten(1), weight), arrivals, neuron)
        grid = Grid.of(neuron, self.t_end, self.dt, self.scheme)
        v = i = drive.new_zeros(drive.shape[2:])
        potential = []
        for psp, psc in dense(steps, drive, grid.steps).unbind(1):
            v, i = flow(v, i, grid.a, grid.s, grid.phi)
            v, i = v + psp, i + psc
            potential.append(v)
        check_finite(is_finite(v))  # what is not stays so
        return torch.stack(potential)

    def _drive(self, synapses: Callable[[Tensor], Tensor], arrivals: Spikes, neuron: LIF) -> tuple[Tensor, Tensor]:
        """The steps [A] with arrivals, and what their effects are behind the synapses, [2, A, B, *shape of the layer]."""
        check_arrivals(arrivals)
        self.check_begin(arrivals)
        steps, values = self._effects(arrivals, neuron)
        shape = arrivals._shape if isinstance(arrivals, GridSpikes) else (arrivals.num_neurons,)
        with torch.autocast(arrivals.device.type, enabled=False):
            drive = synapses(values.reshape(math.prod(values.shape[:3]), *shape))
        return steps, drive.unflatten(0, tuple(values.shape[:3]))

    def _drive_through(self, weight: Tensor, arrivals: Spikes, neuron: LIF) -> tuple[Tensor, Tensor]:
        """The same behind ``weight`` [N, M]; on the CPU from arrival to arrival, without what arrives in each step."""
        self.check_begin(arrivals)
        return drive_of(arrivals, weight, neuron, self)

    def _effects(self, arrivals: Spikes, neuron: LIF) -> tuple[Tensor, Tensor]:
        """The steps [A] with arrivals, and what these have raised by the end of each, [2, A, B, M]."""
        return effects(arrivals, neuron, self)

    def _constants(self, neuron: LIF, values: Tensor) -> tuple[list[float], str, str]:
        """The last arguments of the operators, for tensors where ``values`` are."""
        check_step(self.dt, min(neuron.tau_mem, neuron.tau_syn), self.scheme)
        return [*neuron.numbers, self.t_end, self.dt], self.scheme, self.backend_for(values.device)
