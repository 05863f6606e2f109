"""What every solver offers to layers, and the options that all solvers have."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eventprop.core.checks import bounds, choice, finite_entries, is_finite, positive
from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.core.observe import forget, observed
from eventprop.core.spikes import Spikes
from eventprop.core.tensorlike import traced

from .problem import REDUCTIONS, Dense, Problem, Readout
from .stream import current
from .support import Support, UnsupportedError
from .tape import check_finite

BACKENDS = ("auto", "numba", "torch")
GRAZING = ("raw", "clamp", "saturate", "drop")


class Solver(ABC):
    """Solves the problems that layers pose; ``EventDriven`` or ``TimeStepped``.

    A solver of your own declares in ``variants`` what it solves, and has ``spikes_of``, and ``potential_of`` if it solves
    readouts.

    Attributes:
        t_end: end of the window [0, t_end] in ms. A layer is at rest before its first arrival, also one before 0: what
            arrives before 0 acts, and the layer emits spikes from its first arrival to ``t_end``. What is measured is
            measured over [0, t_end]: readouts, ``silent_margin``, ``smooth_count``, and the losses on them. Spikes arriving
            after ``t_end`` have no effect. ``TimeStepped`` begins at 0, and refuses earlier arrivals.
        grazing: what the backward pass does where a spike crosses the threshold with a slope dV/dt below ``min_slope``,
            since eq. (9) divides by the slope. "raw": nothing, the gradient is exact; "clamp": the slope counts as
            ``min_slope``; "saturate": every slope counts as sqrt(slope^2 + min_slope^2), which changes smoothly from one
            to the other; "drop": the spike passes no gradient on. The forward pass is the same for all.
        min_slope: the slope in 1/ms below which a crossing counts as grazing.
        backend: "numba" (CPU), "torch" (any device; the reference), or "auto": numba for CPU tensors, else torch.
        variants: what the solver solves, for each of its settings that differ in that.
        begin: in ms, of what a layer may receive.
        step: in ms, of its grid; 0 for none.
    """

    variants: ClassVar[Mapping[str, Support]] = {}
    begin: ClassVar[float] = -math.inf

    t_end: float
    grazing: str
    min_slope: float
    backend: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "t_end", positive("t_end", self.t_end))
        object.__setattr__(self, "min_slope", positive("min_slope", self.min_slope))
        choice("grazing", self.grazing, GRAZING)
        choice("backend", self.backend, BACKENDS)

    @property
    def step(self) -> float:
        return 0.0

    @property
    def variant(self) -> str:
        """Which of the ``variants`` this is."""
        return next(iter(self.variants))

    @property
    def supports(self) -> Support:
        """What this solver solves, and on which backends."""
        return self.variants[self.variant]

    def solve(self, problem: Problem, arrivals: Spikes) -> Any:
        """The spikes that the neurons emit, or the ``Tensor`` that is read out of their potential; differentiable in the
        arrival times and all parameters."""
        problem.synapses.check(arrivals)
        self.check(problem, arrivals.device)
        if self.begin > -math.inf and bounds(arrivals.time)[0] < self.begin:
            raise ValueError(
                f"spikes must not come before time {self.begin:g}, got {bounds(arrivals.time)[0]}; shift all times, or use "
                f"EventDriven"
            )
        stream = current()
        if stream is not None:
            result = stream.solve(self, problem, arrivals)
        else:
            result = (self.spikes_of if problem.readout is None else self.potential_of)(problem, arrivals)
        if problem.readout is not None:
            check_finite(is_finite(result))
        return result

    def check(self, problem: Problem, device: torch.device | None = None) -> None:
        """Raise unless this solver solves the problem, for tensors on ``device``, or on some.

        Raises:
            UnsupportedError: it names solvers that do.
        """
        kind = problem.kind(self.step)
        solved_on = self.supports.get(kind, ())
        backend = None if device is None else self.backend_for(device)
        if backend in solved_on or (solved_on and backend is None):
            return
        what = str(kind).replace("`", "")
        others = " or ".join(
            name for name, support in _variants().items() if support.get(kind) and name != self.variant
        )
        if solved_on:
            raise UnsupportedError(
                f"backend must be {' or '.join(map(repr, ('auto', *solved_on)))}, and tensors on the CPU, for {what} with "
                f"{self.variant}, got {self.backend!r} and {device}" + (f"; or use {others}" if others else "")
            )
        if not others:
            raise UnsupportedError(f"neuron must be LIF: no solver solves {what}; got {problem.neuron} and {self}")
        raise UnsupportedError(f"solver must be {others} for {what}, got {self}")

    @abstractmethod
    def spikes_of(self, problem: Problem, arrivals: Spikes) -> Spikes:
        """The spikes that the neurons of a problem emit that this solver supports."""

    def potential_of(self, problem: Problem, arrivals: Spikes) -> Tensor:
        """What is read out of the potential of neurons without threshold."""
        raise NotImplementedError

    def check_stream(self, problem: Problem, device: torch.device | None = None) -> None:
        """Raise unless this solver solves the problem in chunks of time, for tensors on ``device``, or on some."""
        raise UnsupportedError(
            f"solver must be EventDriven in a stream, got {self} for {problem.kind(self.step)}; or give the network the whole "
            f"recording at once"
        )

    def solve_chunk(self, problem: Problem, arrivals: Spikes, carried: Any, last: bool) -> tuple[Any, Any]:
        """The output of a layer for one chunk of time, from what it has ``carried`` over, None in the first one; and what it
        carries over to the next. Only the ``last`` one goes up to ``t_end``; others end at the last arrival, whose effect
        depends on what comes next."""
        raise NotImplementedError

    def spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF) -> Spikes:
        """The spikes of a fully connected layer with ``weight`` [N, M]."""
        return self.solve(Problem(Dense(weight), neuron), arrivals)

    def readout(self, arrivals: Spikes, weight: Tensor, neuron: LIF, reduce: str) -> Tensor:
        """[B, N] the potential of neurons without threshold: its maximum over time, or its time average over [0, t_end]."""
        choice("reduce", reduce, REDUCTIONS)
        return self.solve(Problem(Dense(weight), neuron, readout=Readout(reduce)), arrivals)

    def backend_for(self, device: torch.device) -> str:
        """Which of the two, "numba" or "torch", computes for tensors on ``device``."""
        if self.backend == "numba" and device.type != "cpu":
            raise ValueError(f"backend 'numba' needs CPU tensors, got {device}; use backend='auto'")
        return "numba" if self.backend != "torch" and device.type == "cpu" else "torch"

    def effective_slope(self, slope: Tensor) -> Tensor:
        """The slopes that the backward pass divides by."""
        return effective_slope(slope, self.grazing, self.min_slope)


def _variants() -> dict[str, Support]:
    """What the solvers that there are solve, by name."""
    found: dict[str, Support] = {}
    kinds = Solver.__subclasses__()
    for kind in kinds:
        found |= kind.variants
        kinds += kind.__subclasses__()
    return found


def spikes_by_passes(solver: Solver, problem: Problem, arrivals: Spikes) -> Spikes:
    """The spikes of a recurrent layer by passes, each of which is fed the spikes of the one before: a pass gets them, and their
    gradients, right for another ``delay`` ms."""
    synapses, recurrence = problem.synapses, problem.recurrence
    assert isinstance(synapses, Dense)
    assert recurrence is not None
    if traced(arrivals.time):  # the first arrival, and so the number of passes, is not known
        raise ValueError("backend must be 'auto' or 'numba' for a recurrent layer within torch.compile or torch.func")
    inputs, begin = synapses.weight.shape[1], min(0.0, bounds(arrivals.time)[0])
    both = torch.cat([arrivals.scaled(synapses.weight), recurrence.weight], dim=1)
    time, index, before = arrivals.time, arrivals.index.long(), None
    seen = observed()
    for _ in range(2 + math.ceil((solver.t_end - begin) / recurrence.delay)):
        order = time.argsort(dim=1, stable=True)
        fed = Spikes._trusted(time.gather(1, order), index.gather(1, order), (both.shape[1],))
        forget(seen)  # only the last pass counts: with gradients there are more passes than without
        emitted = solver.spikes_of(Problem(Dense(both), problem.neuron), fed)
        # gradients may still change where the spikes no longer do: through weights that are 0
        if not torch.is_grad_enabled() and before is not None and _equal(emitted.time, before):
            break
        before = emitted.time
        time = torch.cat([arrivals.time, emitted.time + recurrence.delay], dim=1)
        again = (emitted.index + inputs).masked_fill(emitted.index < 0, -1)
        index = torch.cat([arrivals.index.long(), again], dim=1)
    return emitted


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether both are equal; False where they cannot be looked at."""
    return not traced(a, b) and torch.equal(a, b)


def effective_slope(slope: Tensor, grazing: str, min_slope: float) -> Tensor:
    """The slopes that a backward pass divides by; ``grazing`` and ``min_slope`` as for ``Solver``."""
    if grazing == "clamp":
        return slope.clamp(min=min_slope)
    if grazing == "saturate":
        return slope.square().add(min_slope**2).sqrt()
    if grazing == "drop":
        return slope.masked_fill(slope < min_slope, torch.inf)
    return slope


def delayed_times(arrivals: Spikes, delay: Tensor) -> Tensor:
    """[B, K, N] when each of the arrivals comes to each neuron, through synapses with ``delay`` [N, M]; +inf for padding."""
    finite_entries("delay", delay)
    return arrivals.time[:, :, None] + delay.t()[arrivals.index.long().clamp(min=0)]
