"""Modules: parameters, shapes and initialisation. The mathematics is the solver's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checks import choice, whole
from .event_driven import EventDriven
from .event_driven.solver import READOUTS
from .neuron import LIF
from .spikes import FLOATS, Spikes


class _Synapses(nn.Module):
    """A fully connected layer of synapses onto neurons of one kind."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        solver: EventDriven,
        neuron: LIF | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = whole("in_features", in_features, minimum=1)
        self.out_features = whole("out_features", out_features, minimum=1)
        self.neuron = LIF() if neuron is None else neuron
        self.solver = solver
        if not isinstance(self.neuron, LIF):
            raise TypeError(f"neuron must be an eventprop.LIF, got {type(neuron).__name__}")
        if not isinstance(solver, EventDriven):
            raise TypeError(f"solver must be an eventprop.EventDriven, got {type(solver).__name__}")
        if dtype is not None and dtype not in FLOATS:
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        # stored input-major: an arriving spike reads one contiguous row, and the gradient has the same strides
        self.weight = nn.Parameter(torch.empty(in_features, out_features, device=device, dtype=dtype).t())
        self.reset_parameters()

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights from a normal distribution that makes neurons fire, whatever the number of inputs.

        With w_min the smallest weight with which a single spike fires the neuron (``LIF.minimum_weight``), M inputs of
        mean weight ``mean`` w_min / M that all spiked at once would raise V to ``mean`` v_th; the standard deviation
        ``std`` w_min / sqrt(M) makes V fluctuate by about ``std`` v_th. So sparse input fires some neurons and dense input
        about half of them, in one layer after another.
        """
        unit = self.neuron.minimum_weight
        nn.init.normal_(self.weight, mean * unit / self.in_features, std * unit / math.sqrt(self.in_features))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, neuron={self.neuron}, solver={self.solver}"


class SpikingLinear(_Synapses):
    """Leaky integrate-and-fire neurons behind fully connected synapses: maps spike trains to spike trains.

    Args:
        in_features: number of input neurons M.
        out_features: number of neurons N.
        neuron: their parameters, ``LIF()`` by default.
        solver: how to compute their spikes and gradients, e.g. ``EventDriven(t_end=40.0)``.
        device, dtype: of the weight; float32 or float64.

    Attributes:
        weight: [N, M] Parameter.

    >>> layer = SpikingLinear(2, 1, solver=EventDriven(t_end=40.0))
    >>> _ = layer.weight.data.fill_(5.0)
    >>> spikes = layer(Spikes.from_times(torch.tensor([[1.0, 2.0]])))
    >>> spikes.count()
    tensor([[1]])
    """

    def forward(self, spikes: Spikes) -> Spikes:
        return self.solver.spikes(spikes, self.weight, self.neuron)


class LeakyReadout(_Synapses):
    """Neurons without threshold behind fully connected synapses: maps spike trains to one potential per neuron, [B, N].

    Args:
        in_features, out_features, neuron, solver, device, dtype: as for ``SpikingLinear``; ``v_th`` of the neuron only
            scales the initial weights.
        reduce: "max" for the maximum of the potential over time (rest, 0, included), "mean" for its average over
            [0, t_end]. Both are closed forms with exact gradients.
    """

    def __init__(self, in_features: int, out_features: int, *, reduce: str = "max", **synapses) -> None:
        choice("reduce", reduce, READOUTS)
        super().__init__(in_features, out_features, **synapses)
        self.reduce = reduce

    def forward(self, spikes: Spikes) -> Tensor:
        return self.solver.readout(spikes, self.weight, self.neuron, self.reduce)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduce={self.reduce!r}"
