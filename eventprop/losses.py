"""Losses on the output of a network, and the objectives that the training command chooses from.

An objective is a loss together with the output layer it needs and the way to read a class off that layer's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.checks import bounds, is_finite, not_negative, positive, real
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingLinear
from eventprop.layers.readout import LeakyReadout
from eventprop.solvers.problem import Readout


class ParameterError(ValueError):
    """A parameter with which a loss, or its gradient, has no number in the dtype of the spikes.

    The message begins with its name. Losses are computed in float64: where the dtype can hold them, they are right.
    """


def first_spike_cross_entropy(
    spikes: Spikes, target: Tensor, tau0: float = 0.5, tau1: float = 6.4, alpha: float = 3e-3
) -> Tensor:
    """Cross-entropy on first-spike times, with a term that asks the right neuron to spike early.

        mean over samples of  -log( exp(-t_target/tau0) / sum_k exp(-t_k/tau0) ) + alpha (exp(t_target/tau1) - 1)

    as in Wunderlich & Pehle (2021) for Yin-Yang, whose parameters are the defaults. Silent neurons leave the sum. A sample
    whose target neuron is silent has no gradient, and counts as log(C), the loss of a guess. No samples have loss 0.

    Args:
        spikes: of the C output neurons; anything with ``first_spike_time() -> [B, C]``.
        target: [B] class numbers.
        tau0, tau1: time scales in ms, > 0.
        alpha: weight of the second term, >= 0.

    Raises:
        ParameterError: if a target spike is so late that a term, or its gradient, exceeds the dtype of the times.
    """
    tau0, tau1, alpha = positive("tau0", tau0), positive("tau1", tau1), not_negative("alpha", alpha)
    time = spikes.first_spike_time()
    check_target(target, time)
    logits, fired = _first_spike_logits(time, tau0)
    answered = fired.gather(1, target[:, None]).squeeze(1)
    logits = torch.where(answered[:, None], logits, 0.0)  # all equal: log(C), without a gradient
    each = F.cross_entropy(logits, target, reduction="none")
    if alpha > 0:
        own = torch.where(answered, time.gather(1, target[:, None]).squeeze(1), 0.0).double()
        latest = bounds(own)[1]
        # the logarithm of the term or of its derivative, whichever is larger
        if latest / tau1 > 709 or latest / tau1 + math.log(alpha / min(tau1, 1.0)) > _log_max(time):
            raise ParameterError(
                f"tau1={tau1} is too small for a target spike at {latest:g} ms: alpha exp(t/tau1), or its gradient, exceeds "
                f"{_name(time)}; choose a larger tau1, or a smaller alpha such as 0, got alpha={alpha}"
            )
        each = each + alpha * torch.expm1(own / tau1)
    loss = _mean(each).to(time)
    if not is_finite(loss):
        late = -tau0 * bounds(logits.gather(1, target[:, None]))[0]
        raise ParameterError(
            f"tau0={tau0} is too small for a target spike {late:g} ms after the first: their ratio exceeds {_name(time)}; "
            f"choose a larger tau0"
        )
    return loss


def _first_spike_logits(time: Tensor, tau0: float) -> tuple[Tensor, Tensor]:
    """[B, C] (t_first - t)/``tau0`` in float64, -inf for silent neurons, and who fired; the softmax is that of -t/``tau0``."""
    _check_scale("tau0", tau0, time)
    fired = torch.isfinite(time)
    first = time.detach().amin(1, keepdim=True) if time.shape[1] else time
    return torch.where(fired, (first.double() - time.double()) / tau0, -math.inf), fired


def spike_time_mse(spikes: Spikes, target: Tensor, tau: float = 1.0) -> Tensor:
    """Mean over samples and neurons of ((t - target) / tau)^2 for first-spike times t.

    Silent neurons, and targets of +inf, leave the mean: the first have no gradient (``silent_margin`` has one), the second
    stand for neurons whose time does not matter.

    Args:
        spikes: of N neurons.
        target: [B, N] times in ms.
        tau: time scale in ms, > 0.

    Raises:
        ParameterError: if a spike is so far from its target that its square, or the gradient, exceeds the dtype of the times.

    >>> spike_time_mse(Spikes.from_times(torch.tensor([[3.0, 8.0]])), torch.tensor([[1.0, math.inf]]))
    tensor(4.)
    """
    tau = positive("tau", tau)
    time = spikes.first_spike_time()
    if target.shape != time.shape:
        raise ValueError(f"target must have shape {list(time.shape)}, one time per neuron, got {list(target.shape)}")
    if not -math.inf < bounds(target)[0]:
        raise ValueError("target must be finite, or +inf where a time does not matter; got NaN or -inf")
    counted = torch.isfinite(time) & torch.isfinite(target)
    error = torch.where(counted, time, 0.0).double() - torch.where(counted, target, 0.0).double()
    farthest = bounds(error.abs())[1]
    if not (farthest / tau) * (max(farthest, 2.0) / tau) <= torch.finfo(time.dtype).max:
        raise ParameterError(
            f"tau={tau} is too small for a spike {farthest:g} ms from its target: the square of their ratio, or its gradient, "
            f"exceeds {_name(time)}; choose a larger tau"
        )
    return ((error / tau).square() / counted.sum().clamp(min=1)).sum().to(time)


def smooth_count(spikes: Spikes, t_end: float, tau: float) -> Tensor:
    """[B, N] the number of spikes of each neuron, where a spike at t counts 1 - exp(-(t_end - t)/tau).

    A count alone has no gradient. Here a spike grows from nothing at ``t_end``, where it would enter or leave the window, to
    one some ``tau`` before, so that the gradient of its time tells how to get more spikes, or fewer.

    Args:
        t_end: end of the window [0, t_end] in ms; spikes outside do not count.
        tau: in ms, > 0.

    >>> smooth_count(Spikes.from_times(torch.tensor([[[0.0, 100.0], [39.0, torch.inf]]])), t_end=40.0, tau=1.0)
    tensor([[1.0000, 0.6321]])
    """
    t_end = positive("t_end", t_end)
    tau = positive("tau", tau)
    _check_scale("tau", tau, spikes.time)
    time = spikes.time.double()
    left = torch.where((time >= 0.0) & (time <= t_end), t_end - time, 0.0)
    return spikes.summed(-torch.expm1(-left / tau)).to(spikes.dtype)


def spike_count_cross_entropy(spikes: Spikes, target: Tensor, t_end: float, tau: float = 10.0) -> Tensor:
    """Cross-entropy on the ``smooth_count`` of each output neuron.

    Args:
        target: [B] class numbers.
        t_end, tau: as for ``smooth_count``.
    """
    return cross_entropy(smooth_count(spikes, t_end, tau), target)


def spike_count_penalty(
    spikes: Spikes, t_end: float, tau: float = 10.0, *, low: float = 0.0, high: float = math.inf
) -> Tensor:
    """Mean over neurons of the square by which the batch average of their ``smooth_count`` lies outside [low, high].

    For neurons without any spike it has no gradient: ``silent_margin`` has.

    Args:
        t_end, tau: as for ``smooth_count``.
        low, high: spikes per sample, 0 <= low <= high, of which ``high`` may be infinite.

    Raises:
        ParameterError: if the square, or the gradient, may exceed the dtype of the times.

    >>> busy = Spikes.from_times(torch.tensor([[[0.0, 1.0, 2.0], [0.0, torch.inf, torch.inf]]]))
    >>> spike_count_penalty(busy, t_end=100.0, tau=1.0, low=1.0, high=2.0)  # (3 - 2)^2, for one of two neurons
    tensor(0.5000)
    """
    low, high, tau = real("low", low), real("high", high), positive("tau", tau)
    if not (0 <= low <= high and low < math.inf):
        raise ValueError(f"low and high must satisfy 0 <= low <= high, low finite, got low={low} and high={high}")
    counts = smooth_count(spikes, t_end, tau).double()
    average = counts.sum(0) / max(len(counts), 1)
    for name, value, size in (("low", low, low * low), ("tau", tau, 2.0 * max(low, spikes.time.shape[1]) / tau)):
        if not size <= torch.finfo(spikes.dtype).max:
            raise ParameterError(
                f"{name}={value} is too {'large' if name == 'low' else 'small'}: the square of low={low}, or the gradient, of "
                f"the size max(low, spikes)/tau, exceeds {_name(spikes.time)}; choose a smaller low or a larger tau"
            )
    outside = (low - average).clamp(min=0.0).square() + (average - high).clamp(min=0.0).square()
    return (outside / max(len(outside), 1)).sum().to(spikes.dtype)


def silent_margin(layer: SpikingLinear, arrivals: Spikes, output: Spikes) -> Tensor:
    """[B, N] by how much the potential of each neuron of ``layer`` fell short of the threshold: v_th - max V where it did not
    fire, 0 where it did.

    A neuron that never fires has no gradient, and so never learns to; this has one wherever V rises above rest, exact by the
    envelope theorem: at its maximum, V changes with the weights alone and not with the time of the maximum. With
    ``TimeStepped``, V is that of ``LeakyReadout``: in continuous time, or with ``scheme="euler"`` on the grid.

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
    if not isinstance(layer, SpikingLinear):
        raise TypeError(f"layer must be a SpikingLinear of LIF neurons, got {layer}")
    problem = layer.problem._replace(readout=Readout("max"))
    layer.solver.check(problem)
    assert isinstance(problem.neuron, LIF)  # no solver reads others out
    highest = layer.solver.solve(problem, arrivals)
    # a crossing that a grid misses is no shortfall
    return torch.where(output.count() == 0, (problem.neuron.v_th - highest).clamp(min=0.0), 0.0)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of the cross-entropy of ``logits`` [B, C]; 0 for no samples.

    Raises:
        TypeError, ValueError: if ``target`` is not as for ``check_target``, or the loss is not finite.
    """
    check_target(target, logits)
    loss = _mean(F.cross_entropy(logits, target, reduction="none"))
    if not is_finite(loss):
        low, high = bounds(logits)
        raise ValueError(
            f"output must be finite, and {_name(logits)} must hold the differences of its entries; got entries from {low:g} to "
            f"{high:g}; lower the weights and the learning rate"
        )
    return loss


def check_target(target: Tensor, output: Tensor) -> None:
    """Raise unless ``target`` holds one class number for each row of ``output`` [B, C]."""
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 class numbers, got {target.dtype}; convert with .long()")
    if target.shape != output.shape[:1]:
        raise ValueError(f"target must have shape [{len(output)}], one class per sample, got {list(target.shape)}")
    low, high = bounds(target)
    if low < 0 or high >= output.shape[1]:
        raise ValueError(f"target must lie in [0, {output.shape[1]}), got values from {low:g} to {high:g}")


def _mean(each: Tensor) -> Tensor:
    """The mean of [B] numbers, which does not overflow where they do not; 0 for none."""
    return (each / max(len(each), 1)).sum()


def _check_scale(name: str, tau: float, time: Tensor) -> None:
    """Raise unless the inverse of a time scale, the size of gradients, has a number in the dtype of ``time``."""
    if not 1.0 / tau <= torch.finfo(time.dtype).max:
        raise ParameterError(
            f"{name}={tau} is too small: 1/{name}, the size of gradients, exceeds {_name(time)}; choose a larger {name}"
        )


def _log_max(time: Tensor) -> float:
    return math.log(torch.finfo(time.dtype).max)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class FirstSpike:
    """The class is the output neuron that spikes first; the loss is ``first_spike_cross_entropy``."""

    tau0: float = 0.5
    tau1: float = 6.4
    alpha: float = 3e-3

    def __post_init__(self) -> None:
        positive("tau0", self.tau0)
        positive("tau1", self.tau1)
        not_negative("alpha", self.alpha)

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
        time = output.first_spike_time()
        logits, fired = _first_spike_logits(time, self.tau0)
        return (torch.where(fired.any(1, keepdim=True), logits, 0.0).softmax(1) * fired).to(time)


class _Voltage:
    """The class is the neuron with the highest potential, by one reduction over time; the loss is cross-entropy."""

    reduce: str

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> LeakyReadout:
        return LeakyReadout(in_features, num_classes, reduce=self.reduce, **synapses)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

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

    def __post_init__(self) -> None:
        positive("tau", self.tau)

    def output_layer(self, in_features: int, num_classes: int, **synapses) -> LeakyReadout:
        return LeakyReadout(in_features, num_classes, reduce="weighted", tau_weight=self.tau, **synapses)


@dataclass(frozen=True)
class SpikeCount:
    """The class is the output neuron that spikes most; the loss is ``spike_count_cross_entropy``."""

    t_end: float = 40.0
    tau: float = 10.0

    def __post_init__(self) -> None:
        positive("t_end", self.t_end)
        positive("tau", self.tau)

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
