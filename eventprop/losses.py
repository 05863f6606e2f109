"""Losses on the output of a network, and the objectives that the training command chooses from.

An objective is a loss together with the output layer it needs and the way to read a class off that layer's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import positive
from .layers import LeakyReadout, SpikingLinear
from .neuron import LIF
from .spikes import Spikes
from .time_stepped import TimeStepped


def first_spike_cross_entropy(
    spikes: Spikes, target: Tensor, tau0: float = 0.5, tau1: float = 6.4, alpha: float = 3e-3
) -> Tensor:
    """Cross-entropy on first-spike times, with a term that asks the right neuron to spike early.

        mean over samples of  -log( exp(-t_target/tau0) / sum_k exp(-t_k/tau0) ) + alpha (exp(t_target/tau1) - 1)

    as in Wunderlich & Pehle (2021) for Yin-Yang, whose parameters are the defaults. Silent neurons leave the sum. A sample
    whose target neuron is silent has no gradient, and counts as log(C), the loss of a guess.

    Args:
        spikes: of the C output neurons; anything with ``first_spike_time() -> [B, C]``.
        target: [B] class numbers.
        tau0, tau1: time scales in ms, > 0.
        alpha: weight of the second term, >= 0.
    """
    positive("tau0", tau0)
    positive("tau1", tau1)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be >= 0 and finite, got {alpha}")
    time = spikes.first_spike_time()
    check_target(target, time)
    fired = torch.isfinite(time)
    time = torch.where(fired, time, 0.0)
    answered = fired.gather(1, target[:, None]).squeeze(1)
    logits = torch.where(fired, -time / tau0, -math.inf)
    logits = torch.where(answered[:, None], logits, 0.0)  # all equal: log(C), without a gradient
    early = torch.expm1(time.gather(1, target[:, None]).squeeze(1) / tau1)
    return (F.cross_entropy(logits, target, reduction="none") + alpha * early).mean()


def spike_time_mse(spikes: Spikes, target: Tensor, tau: float = 1.0) -> Tensor:
    """Mean over samples and neurons of ((t - target) / tau)^2 for first-spike times t.

    Silent neurons, and targets of +inf, leave the mean: the first have no gradient (``silent_margin`` has one), the second
    stand for neurons whose time does not matter.

    Args:
        spikes: of N neurons.
        target: [B, N] times in ms.
        tau: time scale in ms, > 0.

    >>> spike_time_mse(Spikes.from_times(torch.tensor([[3.0, 8.0]])), torch.tensor([[1.0, math.inf]]))
    tensor(4.)
    """
    positive("tau", tau)
    time = spikes.first_spike_time()
    if target.shape != time.shape:
        raise ValueError(f"target must have shape {list(time.shape)}, one time per neuron, got {list(target.shape)}")
    if torch.isnan(target).any() or torch.isneginf(target).any():
        raise ValueError("target must be finite, or +inf where a time does not matter; got NaN or -inf")
    counted = torch.isfinite(time) & torch.isfinite(target)
    error = torch.where(counted, time, 0.0) - torch.where(counted, target, 0.0)
    return (error / tau).square().sum() / counted.sum().clamp(min=1)


def smooth_count(spikes: Spikes, t_end: float, tau: float) -> Tensor:
    """[B, N] the number of spikes of each neuron, where a spike at t counts 1 - exp(-(t_end - t)/tau).

    A count alone has no gradient. Here a spike grows from nothing at ``t_end``, where it would enter or leave the window, to
    one some ``tau`` before, so that the gradient of its time tells how to get more spikes, or fewer.

    Args:
        t_end: end of the window in ms; later spikes do not count.
        tau: in ms, > 0.

    >>> smooth_count(Spikes.from_times(torch.tensor([[[0.0, 100.0], [39.0, torch.inf]]])), t_end=40.0, tau=1.0)
    tensor([[1.0000, 0.6321]])
    """
    tau, t_end = positive("tau", tau), positive("t_end", t_end)
    left = (t_end - spikes.time).clamp(min=0.0)
    return spikes.summed(-torch.expm1(-left / tau))


def spike_count_cross_entropy(spikes: Spikes, target: Tensor, t_end: float, tau: float = 10.0) -> Tensor:
    """Cross-entropy on the ``smooth_count`` of each output neuron.

    Args:
        target: [B] class numbers.
        t_end, tau: as for ``smooth_count``.
    """
    counts = smooth_count(spikes, t_end, tau)
    check_target(target, counts)
    return F.cross_entropy(counts, target)


def spike_count_penalty(
    spikes: Spikes, t_end: float, tau: float = 10.0, *, low: float = 0.0, high: float = math.inf
) -> Tensor:
    """Mean over neurons of the square by which the batch average of their ``smooth_count`` lies outside [low, high].

    For neurons without any spike it has no gradient: ``silent_margin`` has.

    Args:
        t_end, tau: as for ``smooth_count``.
        low, high: spikes per sample, 0 <= low <= high.

    >>> busy = Spikes.from_times(torch.tensor([[[0.0, 1.0, 2.0], [0.0, torch.inf, torch.inf]]]))
    >>> spike_count_penalty(busy, t_end=100.0, tau=1.0, low=1.0, high=2.0)  # (3 - 2)^2, for one of two neurons
    tensor(0.5000)
    """
    if not 0 <= low <= high:
        raise ValueError(f"low and high must satisfy 0 <= low <= high, got low={low} and high={high}")
    counts = smooth_count(spikes, t_end, tau).mean(0)
    return ((low - counts).clamp(min=0.0).square() + (counts - high).clamp(min=0.0).square()).mean()


def silent_margin(layer: SpikingLinear, arrivals: Spikes, output: Spikes) -> Tensor:
    """[B, N] by how much the potential of each neuron of ``layer`` fell short of the threshold: v_th - max V where it did not
    fire, 0 where it did.

    A neuron that never fires has no gradient, and so never learns to; this has one wherever V rises above rest, exact by the
    envelope theorem: at its maximum, V changes with the weights alone and not with the time of the maximum. With
    ``TimeStepped``, V is that at the ends of steps, where spikes are decided.

    Args:
        layer: of ``LIF`` neurons.
        arrivals, output: of the layer.

    >>> from eventprop import EventDriven
    >>> layer = SpikingLinear(1, 1, solver=EventDriven(40.0))
    >>> _ = layer.weight.data.fill_(1.0)
    >>> arrivals = Spikes.from_times(torch.tensor([[0.0]]))
    >>> silent_margin(layer, arrivals, layer(arrivals))
    tensor([[0.8425]], grad_fn=<WhereBackward0>)
    """
    if type(layer) is not SpikingLinear or not isinstance(layer.neuron, LIF):
        raise TypeError(f"layer must be a SpikingLinear of LIF neurons, got {layer}")
    if isinstance(layer.solver, TimeStepped):
        highest = layer.solver.free_potential(arrivals, layer.weight, layer.neuron).amax(0).clamp(min=0.0)
    else:
        highest = layer.solver.readout(arrivals, layer.weight, layer.neuron, "max")
    return torch.where(output.count() == 0, layer.neuron.v_th - highest, 0.0)


def check_target(target: Tensor, output: Tensor) -> None:
    """Raise unless ``target`` holds one class number for each row of ``output`` [B, C]."""
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 class numbers, got {target.dtype}; convert with .long()")
    if target.shape != output.shape[:1]:
        raise ValueError(f"target must have shape [{len(output)}], one class per sample, got {list(target.shape)}")
    if target.numel():
        low, high = (int(bound) for bound in target.aminmax())
        if low < 0 or high >= output.shape[1]:
            raise ValueError(f"target must lie in [0, {output.shape[1]}), got values from {low} to {high}")


@dataclass(frozen=True)
class FirstSpike:
    """The class is the output neuron that spikes first; the loss is ``first_spike_cross_entropy``."""

    tau0: float = 0.5
    tau1: float = 6.4
    alpha: float = 3e-3

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> SpikingLinear:
        return SpikingLinear(in_features, num_classes, **synapses)

    def __call__(self, output: Spikes, target: Tensor) -> Tensor:
        return first_spike_cross_entropy(output, target, self.tau0, self.tau1, self.alpha)

    def predict(self, output: Spikes) -> Tensor:
        """[B] class numbers; -1 where every output neuron is silent, which is never right."""
        time, neuron = output.first_spike_time().min(dim=1)
        return neuron.masked_fill(torch.isinf(time), -1)

    def probabilities(self, output: Spikes) -> Tensor:
        """[B, C] by the softmax in the loss; 0 where every output neuron is silent."""
        return torch.softmax(-output.first_spike_time() / self.tau0, dim=1).nan_to_num(0.0)


class _Voltage:
    """The class is the neuron with the highest potential, by one reduction over time; the loss is cross-entropy."""

    reduce: str

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> LeakyReadout:
        return LeakyReadout(in_features, num_classes, reduce=self.reduce, **synapses)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        check_target(target, output)
        return F.cross_entropy(output, target)

    def predict(self, output: Tensor) -> Tensor:
        """[B] class numbers."""
        return output.argmax(dim=1)

    def probabilities(self, output: Tensor) -> Tensor:
        """[B, C] by the softmax in the loss."""
        return torch.softmax(output, dim=1)


class MaxVoltage(_Voltage):
    """Cross-entropy on the maximum over time of the potential of a leaky readout."""

    reduce = "max"


class MeanVoltage(_Voltage):
    """Cross-entropy on the time-averaged potential of a leaky readout."""

    reduce = "mean"


@dataclass(frozen=True)
class WeightedVoltage(_Voltage):
    """Cross-entropy on the average of a leaky readout's potential with weights exp(-t/``tau``): early spikes count more."""

    tau: float = 20.0
    reduce = "weighted"

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> LeakyReadout:
        return LeakyReadout(in_features, num_classes, reduce="weighted", tau_weight=self.tau, **synapses)


@dataclass(frozen=True)
class SpikeCount:
    """The class is the output neuron that spikes most; the loss is ``spike_count_cross_entropy``."""

    t_end: float = 40.0
    tau: float = 10.0

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> SpikingLinear:
        return SpikingLinear(in_features, num_classes, **synapses)

    def __call__(self, output: Spikes, target: Tensor) -> Tensor:
        return spike_count_cross_entropy(output, target, self.t_end, self.tau)

    def predict(self, output: Spikes) -> Tensor:
        """[B] class numbers."""
        return smooth_count(output, self.t_end, self.tau).argmax(dim=1)

    def probabilities(self, output: Spikes) -> Tensor:
        """[B, C] by the softmax in the loss."""
        return torch.softmax(smooth_count(output, self.t_end, self.tau), dim=1)


Objective = FirstSpike | MaxVoltage | MeanVoltage | WeightedVoltage | SpikeCount
