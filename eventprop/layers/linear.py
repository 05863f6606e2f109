"""Fully connected layers of spiking neurons."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from eventprop.core.checks import check_parameters, whole
from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.core.spikes import FLOATS, Spikes
from eventprop.solvers.problem import Dense, Problem
from eventprop.solvers.solver import Solver


class SpikingModule(nn.Module):
    """A layer whose output is spikes: ``Spikes``, or a raster [T, B, ...] of a number of spikes in each step."""


class _Solved(nn.Module):
    """A layer that a solver solves: parameters and shapes, and the ``problem`` that they are.

    Args:
        neuron, solver, dtype: as for ``SpikingLinear``.
    """

    def __init__(self, neuron: LIF | LearnableLIF | None, solver: Solver, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.neuron, self.solver = LIF() if neuron is None else neuron, solver
        if not isinstance(self.neuron, (LIF, LearnableLIF)):
            raise TypeError(
                f"neuron of a {type(self).__name__} must be LIF or LearnableLIF, got {type(neuron).__name__}"
            )
        if not isinstance(solver, Solver):
            raise TypeError(f"solver must be an EventDriven or a TimeStepped, got {type(solver).__name__}")
        if dtype is not None and dtype not in FLOATS:
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")

    @property
    def problem(self) -> Problem:
        """What the layer asks of its solver."""
        raise NotImplementedError

    def forward(self, spikes: Spikes) -> Any:
        try:
            return self.solver.solve(self.problem, spikes)
        except ValueError:
            check_parameters(self)  # whose errors say more
            raise


def draw_weight(weight: Tensor, unit: float, inputs: int, mean: float, std: float) -> None:
    """Draw weights onto neurons with that many ``inputs``, as ``SpikingLinear.reset_parameters`` says."""
    nn.init.normal_(weight, mean * unit / inputs, std * unit / math.sqrt(inputs))


class _Synapses(_Solved):
    """A fully connected layer of synapses onto neurons."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        solver: Solver,
        neuron: LIF | LearnableLIF | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(neuron, solver, dtype)
        self.in_features = whole("in_features", in_features, minimum=1)
        self.out_features = whole("out_features", out_features, minimum=1)
        if isinstance(self.neuron, LearnableLIF) and self.neuron.num_neurons != out_features:
            raise ValueError(f"neuron must have num_neurons={out_features}, as many as the layer, got {self.neuron}")
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def problem(self) -> Problem:
        return Problem(Dense(self.weight), self.neuron)

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights from a normal distribution that makes neurons fire, whatever the number of inputs.

        With w_min the smallest weight with which a single spike fires the neuron (``LIF.minimum_weight``), M inputs of
        mean weight ``mean`` w_min / M that all spiked at once would raise V to ``mean`` v_th; the standard deviation
        ``std`` w_min / sqrt(M) makes V fluctuate by about ``std`` v_th. So sparse input fires some neurons and dense input
        about half of them, in one layer after another.
        """
        draw_weight(self.weight, self.neuron.minimum_weight, self.in_features, mean, std)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, neuron={self.neuron}, solver={self.solver}"


class SpikingLinear(_Synapses, SpikingModule):
    """Leaky integrate-and-fire neurons behind fully connected synapses: maps spike trains to spike trains.

    Args:
        in_features: number of input neurons M.
        out_features: number of neurons N.
        neuron: their parameters, ``LIF()`` by default; or a ``LearnableLIF``.
        solver: how to compute their spikes and gradients, e.g. ``EventDriven(t_end=40.0)``.
        device, dtype: of the weight; float32 or float64.

    Attributes:
        weight: [N, M] Parameter.

    >>> from eventprop import EventDriven
    >>> layer = SpikingLinear(2, 1, solver=EventDriven(t_end=40.0))
    >>> _ = layer.weight.data.fill_(5.0)
    >>> spikes = layer(Spikes.from_times(torch.tensor([[1.0, 2.0]])))
    >>> spikes.count()
    tensor([[1]])
    """
