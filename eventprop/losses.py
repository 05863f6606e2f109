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
from .spikes import Spikes


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


class MaxVoltage(_Voltage):
    """Cross-entropy on the maximum over time of the potential of a leaky readout."""

    reduce = "max"


class MeanVoltage(_Voltage):
    """Cross-entropy on the time-averaged potential of a leaky readout."""

    reduce = "mean"


Objective = FirstSpike | MaxVoltage | MeanVoltage
