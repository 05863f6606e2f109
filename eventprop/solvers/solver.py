"""What every solver offers to layers, and the options that all solvers have."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from eventprop.core.checks import bounds, choice, finite_entries, positive
from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes, traced

if TYPE_CHECKING:
    from .event_driven import EventDriven

BACKENDS = ("auto", "numba", "torch")
GRAZING = ("raw", "clamp", "saturate", "drop")
READOUTS = ("max", "mean")


class Solver(ABC):
    """Computes the spikes of a layer and their gradient; ``EventDriven`` or ``TimeStepped``.

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
        exact: the event-driven solver of the same window, for what needs no grid.
    """

    begin: ClassVar[float] = -math.inf  # in ms; of what a layer may receive
    t_end: float
    grazing: str
    min_slope: float
    backend: str
    exact: EventDriven

    def __post_init__(self) -> None:
        object.__setattr__(self, "t_end", positive("t_end", self.t_end))
        object.__setattr__(self, "min_slope", positive("min_slope", self.min_slope))
        choice("grazing", self.grazing, GRAZING)
        choice("backend", self.backend, BACKENDS)

    @abstractmethod
    def spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF) -> Spikes:
        """The spikes that a layer with ``weight`` [N, M] emits; differentiable in the arrival times and the weight."""

    @abstractmethod
    def delayed_spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF | LearnableLIF, delay: Tensor) -> Spikes:
        """The spikes of a layer whose synapses delay what they transmit, by ``delay`` [N, M] in ms; differentiable in it."""

    def recurrent_spikes(
        self,
        arrivals: Spikes,
        weight: Tensor,
        neuron: LIF | LearnableLIF,
        recurrent_weight: Tensor,
        delay: float,
    ) -> Spikes:
        """The spikes of a layer that also receives its own, ``delay`` ms later, through ``recurrent_weight`` [N, N].

        Here by passes, each of which is fed the spikes of the one before: a pass gets them, and their gradients, right for
        another ``delay`` ms.
        """
        check_weight(arrivals, weight)
        inputs = weight.shape[1]
        if traced(arrivals.time) and self.begin < 0.0:  # the first arrival, and so the number of passes, is not known
            raise ValueError(
                "backend must be 'auto' or 'numba' for a recurrent layer within torch.compile or torch.func"
            )
        begin = min(0.0, bounds(arrivals.time)[0])
        both = torch.cat([arrivals.scaled(weight), recurrent_weight], dim=1)
        time, index, before = arrivals.time, arrivals.index.long(), None
        for _ in range(2 + math.ceil((self.t_end - begin) / delay)):
            order = time.argsort(dim=1, stable=True)
            fed = Spikes._trusted(time.gather(1, order), index.gather(1, order), (both.shape[1],))
            emitted = self.spikes(fed, both, neuron)
            # gradients may still change where the spikes no longer do: through weights that are 0
            if not torch.is_grad_enabled() and before is not None and _equal(emitted.time, before):
                break
            before = emitted.time
            time = torch.cat([arrivals.time, emitted.time + delay], dim=1)
            again = (emitted.index + inputs).masked_fill(emitted.index < 0, -1)
            index = torch.cat([arrivals.index.long(), again], dim=1)
        return emitted

    @abstractmethod
    def convolution(
        self, arrivals: Spikes, weight: Tensor, neuron: LIF, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Spikes:
        """The spikes of neurons behind a convolution with ``weight`` [C, channels, height, width]."""

    @abstractmethod
    def readout(self, arrivals: Spikes, weight: Tensor, neuron: LIF, reduce: str) -> Tensor:
        """[B, N] potential of neurons without threshold: its maximum over time, or its time average over [0, t_end]."""

    def check_begin(self, arrivals: Spikes) -> None:
        """Raise if spikes come before the solver begins."""
        if self.begin > -math.inf and bounds(arrivals.time)[0] < self.begin:
            raise ValueError(
                f"spikes must not come before time {self.begin:g}, got {bounds(arrivals.time)[0]}; shift all times, or use "
                f"EventDriven"
            )

    def backend_for(self, device: torch.device) -> str:
        """Which of the two, "numba" or "torch", computes for tensors on ``device``."""
        if self.backend == "numba" and device.type != "cpu":
            raise ValueError(f"backend 'numba' needs CPU tensors, got {device}; use backend='auto'")
        return "numba" if self.backend != "torch" and device.type == "cpu" else "torch"

    def effective_slope(self, slope: Tensor) -> Tensor:
        """The slopes that the backward pass divides by."""
        return effective_slope(slope, self.grazing, self.min_slope)


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


def check_weight(arrivals: Spikes, weight: Tensor) -> None:
    """Raise unless ``weight`` [N, M] is one that the solvers can take for these arrivals."""
    check_kind(arrivals, weight)
    if arrivals.num_neurons != weight.shape[1]:
        raise ValueError(
            f"the input has num_neurons={arrivals.num_neurons} but weight {list(weight.shape)} takes {weight.shape[1]}"
        )


def check_kind(arrivals: Spikes, weight: Tensor) -> None:
    """Raise unless ``arrivals`` are spikes, and ``weight`` is of their dtype and on their device."""
    check_arrivals(arrivals)
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"weight must be float32 or float64, got {weight.dtype}; convert the layer with .float()")
    if arrivals.dtype != weight.dtype:
        raise TypeError(f"spike times are {arrivals.dtype} but weight is {weight.dtype}; convert with spikes.to(dtype)")
    if arrivals.device != weight.device:
        raise ValueError(
            f"spikes are on {arrivals.device} but weight is on {weight.device}; move with spikes.to(device)"
        )


def check_arrivals(arrivals: object) -> None:
    """Raise unless the input of a layer is a batch of spike trains."""
    if not isinstance(arrivals, Spikes):
        raise TypeError(
            f"the input must be Spikes, got {type(arrivals).__name__}; encode data with latency_encode or Spikes.from_times"
        )
    if arrivals.time.dim() != 2:
        raise ValueError(
            "the input must be a batch of spike trains, this is one sample; use sample[None], or spikes[0:1]"
        )
