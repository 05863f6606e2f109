"""Spiking neurons behind any linear module of torch, on a time grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eventprop.core.neuron import LIF
from eventprop.solvers.problem import LinearMap, Problem
from eventprop.solvers.solver import Solver

from .linear import SpikingModule, _Solved, draw_weight


class SpikingLayer(_Solved, SpikingModule):
    """Leaky integrate-and-fire neurons behind any linear map, on a time grid: maps spike trains to spike trains.

    The map acts alike on the two numbers that a step of a spike train is, eq. (11), and so trains with exact gradients of
    the spike times: a convolution, a pooling by averages, a sparse or low-rank map, or a sequence of these.

    Args:
        synapses: a linear module from [batch, *shape] to [batch, *shape of this layer]. The input has the shape of the
            layer that it comes from; ``Spikes`` without a grid, as from an encoder, come flat, so begin with
            ``nn.Unflatten`` where that matters.
        neuron: parameters of the neurons, ``LIF()`` by default.
        solver: a ``TimeStepped``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``synapses`` has a bias or is not linear. Modules of torch are known; those of others are tried on
            one sample whenever they are used.

    >>> from eventprop import Spikes, TimeStepped
    >>> synapses = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 4, 5, stride=2, bias=False))
    >>> layer = SpikingLayer(synapses, solver=TimeStepped(t_end=40.0, dt=1.0))
    >>> layer(Spikes.from_times(20 * torch.rand(8, 784))).shape
    (4, 12, 12)
    """

    def __init__(self, synapses: nn.Module, *, solver: Solver, neuron: LIF | None = None) -> None:
        super().__init__(neuron, solver)
        self._known_linear = check_linear(synapses)
        self.synapses = synapses
        solver.check(self.problem)

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights of all synapses as ``SpikingLinear.reset_parameters`` does; the inputs of a neuron are counted
        by the shape of each weight, [outputs, ...]."""
        for weight in self.synapses.parameters():
            draw_weight(weight, self.neuron.minimum_weight, math.prod(weight.shape[1:]), mean, std)

    @property
    def problem(self) -> Problem:
        return Problem(LinearMap(self.synapses if self._known_linear else self._tried), self.neuron)

    def _tried(self, effects: Tensor) -> Tensor:
        drive = self.synapses(effects)
        with torch.no_grad():
            fullest = effects.flatten(1).abs().sum(1).argmax() if len(effects) else 0
            sample = effects[fullest : fullest + 1]
            if not torch.allclose(
                self.synapses(-2.0 * sample), -2.0 * drive[fullest : fullest + 1], rtol=1e-3, atol=1e-6
            ):
                raise ValueError(
                    f"synapses must be linear, without bias: f(-2 x) differs from -2 f(x) in {self.synapses}"
                )
        return drive

    def extra_repr(self) -> str:
        return f"neuron={self.neuron}, solver={self.solver}"


LINEAR_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Sequential, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
)  # fmt: skip


def check_linear(module: nn.Module) -> bool:
    """Whether ``module`` is made of torch's linear modules alone; False if it holds others, that must be tried.

    Raises:
        ValueError: if it has a bias, or is one of torch's nonlinear modules.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"synapses must be a torch.nn.Module, got {type(module).__name__}")
    known = True
    for name, part in module.named_modules():
        label = f"{name or 'the module'} ({type(part).__name__})"
        if getattr(part, "bias", None) is not None:
            raise ValueError(f"synapses must have no bias, {label} has one; build it with bias=False")
        if not isinstance(part, LINEAR_MODULES):
            if type(part).__module__.startswith("torch.nn."):
                raise ValueError(f"synapses must be linear, {label} is not; average pooling and convolutions are")
            known = False
    return known
