"""Fully connected layers whose neurons also receive each other's spikes."""

from __future__ import annotations

import math

from torch import nn

from eventprop.core.checks import not_negative
from eventprop.solvers.problem import Dense, Problem, Recurrence

from .linear import SpikingLinear


class SpikingRecurrent(SpikingLinear):
    """A ``SpikingLinear`` whose neurons also receive each other's spikes, and their own, after a delay.

    Args:
        in_features, out_features, neuron, device, dtype: as for ``SpikingLinear``.
        solver: how to compute spikes and gradients.
        delay: from a spike to its arrival within the layer in ms; >= 0 with ``EventDriven``, at least a step with
            ``TimeStepped``.
        recurrent_std: standard deviation of the initial recurrent weights, in units of ``minimum_weight`` / sqrt(N); their
            mean is 0.

    Attributes:
        weight: [N, M] Parameter.
        recurrent_weight: [N, N] Parameter; its row is the receiving neuron.

    >>> import torch
    >>> from eventprop import Spikes, EventDriven
    >>> layer = SpikingRecurrent(2, 3, solver=EventDriven(t_end=40.0), delay=1.0)
    >>> layer(Spikes.from_times(torch.tensor([[1.0, 2.0]]))).num_neurons
    3
    """

    def __init__(
        self, in_features: int, out_features: int, *, delay: float = 1.0, recurrent_std: float = 0.5, **synapses
    ) -> None:
        delay, recurrent_std = not_negative("delay", delay), not_negative("recurrent_std", recurrent_std)
        super().__init__(in_features, out_features, **synapses)
        self.delay, self.recurrent_std = delay, recurrent_std
        self.recurrent_weight = nn.Parameter(self.weight.new_empty(out_features, out_features))
        self._draw_recurrent()

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does, and the recurrent weights."""
        super().reset_parameters(mean, std)
        if hasattr(self, "recurrent_weight"):  # not yet, while the constructor of SpikingLinear draws the weights
            self._draw_recurrent()

    def _draw_recurrent(self) -> None:
        std = self.recurrent_std * self.neuron.minimum_weight / math.sqrt(self.out_features)
        nn.init.normal_(self.recurrent_weight, 0.0, std)

    @property
    def problem(self) -> Problem:
        return Problem(Dense(self.weight), self.neuron, Recurrence(self.recurrent_weight, self.delay))
