"""Dropout and augmentation of spike trains: modules that change them during training, and let them through otherwise.

They draw from torch's global generator, as ``torch.nn.Dropout`` does. Gradients reach the times of the spikes that stay.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from eventprop.core.checks import fraction, positive, whole
from eventprop.core.spikes import Spikes
from eventprop.solvers.time_stepped import GridSpikes


class _Augmentation(nn.Module):
    def forward(self, spikes: Spikes) -> Spikes:
        return self.changed(spikes) if self.training else spikes

    def changed(self, spikes: Spikes) -> Spikes:
        raise NotImplementedError


class SpikeDropout(_Augmentation):
    """Drop each spike with probability ``p``.

    Those that stay are 1/(1 - p) times as high, so that the next layer receives as much on average, as with
    ``torch.nn.Dropout``.

    Args:
        p: in [0, 1).

    >>> layer = SpikeDropout(0.5).eval()
    >>> layer(Spikes.from_times(torch.tensor([[1.0, 2.0]]))).count()
    tensor([[1, 1]])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = fraction("p", p)

    def changed(self, spikes: Spikes) -> Spikes:
        dropped = torch.rand(spikes.time.shape, device=spikes.device) < self.p
        time, index = spikes.time.masked_fill(dropped, math.inf), spikes.index.masked_fill(dropped, -1)
        return spikes.reordered(time, index, height=1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class SpikeTimeJitter(_Augmentation):
    """Move each spike by a time drawn from a normal distribution; on a grid, spikes stay within its window.

    Args:
        std: standard deviation in ms, > 0.

    >>> jitter, spikes = SpikeTimeJitter(0.5), Spikes.from_times(torch.tensor([[1.0, 2.0]]))
    >>> torch.equal(jitter(spikes).first_spike_time(), spikes.first_spike_time())
    False
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = positive("std", std)

    def changed(self, spikes: Spikes) -> Spikes:
        time = spikes.time + self.std * torch.randn_like(spikes.time)
        if isinstance(spikes, GridSpikes):
            time = time.clamp(0.0, spikes.t_end)
        return spikes.reordered(time.masked_fill(spikes.index < 0, math.inf), spikes.index)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class ShiftImage(_Augmentation):
    """Shift the image that each sample shows by up to ``pixels`` in either direction; what leaves the frame is lost.

    The input has the shape [..., height, width].

    Args:
        pixels: the largest shift, a whole number >= 1.
    """

    def __init__(self, pixels: int = 1) -> None:
        super().__init__()
        self.pixels = whole("pixels", pixels, minimum=1)

    def changed(self, spikes: Spikes) -> Spikes:
        if len(spikes.shape or ()) < 2:
            raise ValueError(
                f"the input must have the shape of an image, got {spikes.shape}; use spikes.reshape(height, width)"
            )
        height, width = spikes._shape[-2:]
        size = height * width
        shape, device = (spikes.batch_size, 1), spikes.device
        down, right = (torch.randint(-self.pixels, self.pixels + 1, shape, device=device) for _ in range(2))
        index = spikes.index.long()
        y, x = index % size // width + down, index % width + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (index >= 0)
        index = (index // size * size + y * width + x).masked_fill(~inside, -1)
        return spikes.reordered(spikes.time.masked_fill(~inside, math.inf), index.to(spikes.index.dtype))

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


class BackgroundSpikes(_Augmentation):
    """Add spikes at random times in [0, ``t_end``] to all neurons: independent Poisson processes.

    Args:
        rate: of each neuron, in spikes per ms, > 0.
        t_end: in ms, > 0.

    >>> _ = torch.manual_seed(0)
    >>> silence = Spikes.from_times(torch.full((1, 1000), torch.inf))
    >>> 150 < BackgroundSpikes(rate=0.005, t_end=40.0)(silence).count().sum() < 250  # 200 on average
    tensor(True)
    """

    def __init__(self, rate: float, t_end: float) -> None:
        super().__init__()
        self.rate, self.t_end = positive("rate", rate), positive("t_end", t_end)

    def changed(self, spikes: Spikes) -> Spikes:
        rows, device = spikes.batch_size, spikes.device
        counts = torch.poisson(torch.full((rows, 1), self.rate * self.t_end * spikes.num_neurons, device=device))
        shape = (rows, int(counts.max()) if rows else 0)
        missing = torch.arange(shape[1], device=device) >= counts
        time = self.t_end * torch.rand(shape, dtype=spikes.dtype, device=device)
        index = torch.randint(max(spikes.num_neurons, 1), shape, dtype=spikes.index.dtype, device=device)
        slope = None if spikes.slope is None else torch.cat([spikes.slope, torch.full_like(time, math.inf)], 1)
        return spikes.reordered(
            torch.cat([spikes.time, time.masked_fill(missing, math.inf)], 1),
            torch.cat([spikes.index, index.masked_fill(missing, -1)], 1),
            slope,
        )

    def extra_repr(self) -> str:
        return f"rate={self.rate}, t_end={self.t_end}"
