"""Learnable delays of spikes: exact gradients, since a delay moves a spike and a spike's time has an exact gradient.

A layer that is at rest before its first arrival does not know what time it is. So a delay of all that a neuron receives (a
dendritic delay) is a delay of all that it emits, and one module serves for both: ``Delay`` behind a layer holds the dendritic
delays of that layer, or the axonal delays of what the next one receives. ``DelayedSpikingLinear`` has a delay for each synapse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventprop.core.checks import finite_entries, positive, whole
from eventprop.core.spikes import Spikes
from eventprop.solvers.problem import Dense, Problem
from eventprop.solvers.time_stepped import GridSpikes

from .linear import SpikingLinear


def _draw(raw: Tensor, mean: float) -> None:
    """Fill with what ``softplus`` turns into delays that are uniform in (0, 2 ``mean``)."""
    with torch.no_grad():
        delay = (2.0 * mean * torch.rand_like(raw)).clamp(min=1e-3 * mean)
        raw.copy_(delay + torch.log(-torch.expm1(-delay)))


class Delay(nn.Module):
    """Delay the spikes of each neuron by a time of its own.

    On a grid, spikes that leave the window are dropped; the event-driven solver ignores them by itself.

    Args:
        num_neurons: of the layer whose spikes are delayed.
        mean: of the initial delays in ms, which are uniform in (0, 2 ``mean``).
        device, dtype: of the parameter.

    Attributes:
        raw_delay: [num_neurons] Parameter, of which the delay is the softplus, log(1 + exp(raw_delay)) > 0.

    >>> delay = Delay(3)
    >>> spikes = Spikes.from_times(torch.tensor([[1.0, 2.0, 3.0]]))
    >>> bool((delay(spikes).first_spike_time() > spikes.first_spike_time()).all())
    True
    """

    def __init__(
        self,
        num_neurons: int,
        mean: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_neurons, self.mean = whole("num_neurons", num_neurons, minimum=1), positive("mean", mean)
        self.raw_delay = nn.Parameter(torch.empty(num_neurons, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the delays."""
        _draw(self.raw_delay, self.mean)

    @property
    def delay(self) -> Tensor:
        """[num_neurons] delays in ms."""
        return F.softplus(self.raw_delay)

    def forward(self, spikes: Spikes) -> Spikes:
        if spikes.num_neurons != self.num_neurons:
            raise ValueError(f"the input has num_neurons={spikes.num_neurons} but there are {self.num_neurons} delays")
        finite_entries("Delay.raw_delay", self.raw_delay)
        delay = torch.cat([self.delay, self.raw_delay.new_zeros(1)])  # the last for padding, whose index is -1
        time, index = spikes.time + delay[spikes.index.long()], spikes.index
        if isinstance(spikes, GridSpikes):
            late = time > spikes.t_end
            time, index = time.masked_fill(late, math.inf), index.masked_fill(late, -1)
        return spikes.reordered(time, index)

    def extra_repr(self) -> str:
        return f"{self.num_neurons}, mean={self.mean}"


class DelayedSpikingLinear(SpikingLinear):
    """A ``SpikingLinear`` whose synapses delay the spikes that they transmit.

    The work grows, as that of ``SpikingLinear``, with the spikes that arrive times the neurons, a few ns each, and backward
    memory with the spikes. With ``EventDriven`` neurons of ``LearnableLIF`` sort what they receive, one by one, and so do all
    where delays are thousands of times the shorter time constant. On other devices than the CPU ``EventDriven`` makes a copy
    of all that arrives for every neuron: for small layers.

    Args:
        in_features, out_features, neuron, solver, device, dtype: as for ``SpikingLinear``.
        mean_delay: of the initial delays in ms, which are uniform in (0, 2 ``mean_delay``).

    Attributes:
        weight: [N, M] Parameter.
        raw_delay: [N, M] Parameter, of which the delay is the softplus, log(1 + exp(raw_delay)) > 0.
    """

    def __init__(self, in_features: int, out_features: int, *, mean_delay: float = 1.0, **synapses) -> None:
        super().__init__(in_features, out_features, **synapses)
        self.mean_delay = positive("mean_delay", mean_delay)
        self.raw_delay = nn.Parameter(torch.empty_like(self.weight))
        _draw(self.raw_delay, self.mean_delay)

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does, and the delays."""
        super().reset_parameters(mean, std)
        if hasattr(self, "raw_delay"):  # not yet, while the constructor of SpikingLinear draws the weights
            _draw(self.raw_delay, self.mean_delay)

    @property
    def delay(self) -> Tensor:
        """[N, M] delays in ms."""
        return F.softplus(self.raw_delay)

    @property
    def problem(self) -> Problem:
        finite_entries("DelayedSpikingLinear.raw_delay", self.raw_delay)
        return Problem(Dense(self.weight, self.delay), self.neuron)
