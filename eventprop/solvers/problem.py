"""What a layer asks of a solver: the spikes, or the potential, of neurons behind synapses.

Shapes: B samples, M inputs, N neurons, S times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.core.spikes import FLOATS, Spikes
from eventprop.core.window import Pair, Window

from .support import Kind


class Dense(NamedTuple):
    """Synapses from each input to each neuron."""

    weight: Tensor  # [N, M]
    delay: Tensor | None = None  # [N, M] ms, from a spike to its arrival

    def check(self, arrivals: Spikes) -> None:
        """Raise unless these synapses can receive the ``arrivals``."""
        check_kind(arrivals, self.weight)
        if arrivals.num_neurons != self.weight.shape[1]:
            raise ValueError(
                f"the input has num_neurons={arrivals.num_neurons} but weight {list(self.weight.shape)} takes "
                f"{self.weight.shape[1]}"
            )


class Convolution(NamedTuple):
    """Synapses from each input to the neurons whose receptive field it lies in."""

    weight: Tensor  # [C, channels, height, width]
    stride: Pair
    padding: Pair

    def window(self, arrivals: Spikes) -> Window:
        """The receptive fields on the image that the ``arrivals`` come from."""
        return Window.on(arrivals, (self.weight.shape[2], self.weight.shape[3]), self.stride, self.padding)

    def check(self, arrivals: Spikes) -> None:
        check_kind(arrivals, self.weight)
        channels = self.window(arrivals).channels
        if channels != self.weight.shape[1]:
            raise ValueError(
                f"the input has {channels} channels but weight {list(self.weight.shape)} takes {self.weight.shape[1]}"
            )


class LinearMap(NamedTuple):
    """Any linear map of the effects of spikes: [batch, *shape] to [batch, *shape of the layer]."""

    function: Callable[[Tensor], Tensor]

    def check(self, arrivals: Spikes) -> None:
        check_arrivals(arrivals)


class Recurrence(NamedTuple):
    """Connections back to the neurons of the layer itself."""

    weight: Tensor  # [N, N]; a row is the receiving neuron
    delay: float  # in ms, from a spike to its arrival


class Readout(NamedTuple):
    """What is read out of neurons without threshold, in the place of spikes; the options are those of ``LeakyReadout``."""

    reduce: str
    tau_weight: float | None = None
    times: Tensor | None = None  # [S] ms
    tau: tuple[Tensor, Tensor] | None = None  # tau_mem and tau_syn, where these are learned


class Problem(NamedTuple):
    """Neurons behind synapses. What arrives, and the window, are the solver's to ask for: ``Solver.solve``."""

    synapses: Dense | Convolution | LinearMap
    neuron: LIF | LearnableLIF
    recurrence: Recurrence | None = None
    readout: Readout | None = None

    def kind(self, step: float = 0.0) -> Kind:
        """What solvers tell problems apart by; ``step`` is that of the solver in ms."""
        neurons = "LearnableLIF" if isinstance(self.neuron, LearnableLIF) else "LIF"
        if isinstance(self.synapses, Dense):
            synapses = "dense" if self.synapses.delay is None else "delayed"
        else:
            synapses = "convolution" if isinstance(self.synapses, Convolution) else "linear map"
        recurrence, output = "none", "spikes"
        if self.recurrence is not None:
            delay = self.recurrence.delay
            recurrence = "delayed" if delay > 0.0 and delay >= step else "instant"
        if self.readout is not None:
            plain = self.readout.reduce in REDUCTIONS and self.readout.tau is None
            output = "max or mean" if plain else "other readout"
        return Kind(synapses, neurons, recurrence, output)

    def to_read_out(self) -> tuple[Tensor, LIF, Readout]:
        """The weight [N, M], the neurons and the readout, of a problem that has one: all solvers read out these alone."""
        assert isinstance(self.synapses, Dense)
        assert isinstance(self.neuron, LIF)
        assert self.readout is not None
        return self.synapses.weight, self.neuron, self.readout


REDUCTIONS = ("max", "mean")


def check_kind(arrivals: Spikes, weight: Tensor) -> None:
    """Raise unless ``arrivals`` are spikes, and ``weight`` is of their dtype and on their device."""
    check_arrivals(arrivals)
    if weight.dtype not in FLOATS:
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
