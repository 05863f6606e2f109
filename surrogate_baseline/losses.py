"""Losses of rate-coded networks, and the objectives that the training command chooses from.

An objective is a loss together with the modules that end the network, and the way to read a class off its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventprop.core.checks import positive
from eventprop.losses import ParameterError, check_target, cross_entropy

from .neurons import IF, Potential


def first_spike_step(spikes: Tensor) -> Tensor:
    """[B, N] the step of the first spike in ``spikes`` [T, B, N] of 0 and 1, or T where there is none.

    Differentiable as the polynomial sum_t prod_{u <= t} (1 - S_u), which is linear in every entry.
    """
    return (1.0 - spikes).cumprod(0).sum(0)


def rates(spikes: Tensor) -> Tensor:
    """[B, N] spikes per step, of ``spikes`` [T, B, N]."""
    if not len(spikes):
        raise ValueError("spikes must have at least one step, got none")
    return spikes.mean(0)


class _Spiking:
    """The network ends with spiking neurons."""

    def output(self, neuron: Callable[[], IF]) -> nn.Module:
        return neuron()


class _Rate(_Spiking):
    """The class is the neuron that spikes most often."""

    def predict(self, spikes: Tensor) -> Tensor:
        """[B] class numbers from ``spikes`` [T, B, C]."""
        return spikes.sum(0).argmax(1)


class RateMSE(_Rate):
    """Mean squared error of the firing rates (spikes per step) from 1 for the class and 0 for the others."""

    def __call__(self, spikes: Tensor, target: Tensor) -> Tensor:
        found = rates(spikes)
        check_target(target, found)
        error = found - F.one_hot(target, found.shape[1]).to(found)
        return error.square().sum() / max(error.numel(), 1)


@dataclass(frozen=True)
class RateCrossEntropy(_Rate):
    """Cross-entropy of the firing rates (spikes per step), times ``gain`` > 0, as logits."""

    gain: float = 10.0

    def __post_init__(self) -> None:
        positive("gain", self.gain)

    def __call__(self, spikes: Tensor, target: Tensor) -> Tensor:
        _check_size("gain", self.gain, self.gain, spikes)
        return cross_entropy(self.gain * rates(spikes), target)


@dataclass(frozen=True)
class FirstSpikeStep(_Spiking):
    """Cross-entropy on the step of the first spike, -t / ``tau`` as logits; a silent neuron counts as if it spiked after
    the last step. The class is the neuron that spikes first."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        positive("tau", self.tau)

    def __call__(self, spikes: Tensor, target: Tensor) -> Tensor:
        _check_size("tau", self.tau, max(len(spikes), 1) / self.tau, spikes)
        return cross_entropy(-first_spike_step(spikes) / self.tau, target)

    def predict(self, spikes: Tensor) -> Tensor:
        """[B] class numbers; -1 where every output neuron is silent, which is never right."""
        first, neuron = first_spike_step(spikes).min(1)
        return neuron.masked_fill(first == len(spikes), -1)


class MaxPotential:
    """Cross-entropy on the maximum over the steps of the potential of output neurons that do not spike."""

    def output(self, neuron: Callable[[], IF]) -> nn.Module:
        return Potential(neuron())

    def __call__(self, potential: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(potential.amax(0), target)

    def predict(self, potential: Tensor) -> Tensor:
        """[B] class numbers from ``potential`` [T, B, C]."""
        return potential.amax(0).argmax(1)


def _check_size(name: str, value: float, size: float, spikes: Tensor) -> None:
    """Raise unless logits of this size have numbers in the dtype of ``spikes``."""
    if not size <= torch.finfo(spikes.dtype).max:
        raise ParameterError(f"{name}={value} makes logits as large as {size:g}, which exceeds {spikes.dtype}")


Objective = RateMSE | RateCrossEntropy | FirstSpikeStep | MaxPotential
