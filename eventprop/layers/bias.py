"""A bias: one more input neuron, which spikes in every sample."""

from __future__ import annotations

import math

import torch
from torch import nn

from eventprop.core.checks import finite
from eventprop.core.spikes import Spikes
from eventprop.solvers.time_stepped import GridSpikes


class BiasSpike(nn.Module):
    """Append one neuron that spikes once in every sample, so that the next layer, of one input more, has a bias.

    Its height is that of the other spikes.

    Args:
        time: of the spike in ms, finite; on a grid, within its window.

    >>> BiasSpike(5.0)(Spikes.from_times(torch.tensor([[1.0, 9.0]]))).to_times(1).flatten()
    tensor([1., 9., 5.])
    """

    def __init__(self, time: float = 0.0) -> None:
        super().__init__()
        self.time = finite("time", time)

    def forward(self, spikes: Spikes) -> Spikes:
        if isinstance(spikes, GridSpikes) and not 0 <= self.time <= spikes.t_end:
            raise ValueError(f"time must lie in [0, t_end={spikes.t_end}], got {self.time}")
        column = (spikes.batch_size, 1)
        time = torch.cat([spikes.time, spikes.time.new_full(column, self.time)], dim=1)
        neuron = torch.full(column, spikes.num_neurons, device=spikes.device)
        slope = (
            None if spikes.slope is None else torch.cat([spikes.slope, spikes.slope.new_full(column, math.inf)], dim=1)
        )
        index = torch.cat([spikes.index.long(), neuron], dim=1)
        return spikes.reordered(time, index, slope, (spikes.num_neurons + 1,))

    def extra_repr(self) -> str:
        return f"time={self.time}"
