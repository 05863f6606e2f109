"""Emitted spikes, from loops in plain torch to a tape: the reference for ``emission``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eventprop.core.spikes import padded_rows

from .tape import Tape, check_spike_count


class Emission:
    """The spikes of a ``batch`` of samples, in any order as they are found.

    Args:
        no_time: an empty tensor like the times of the spikes; it ties the times to its graph where there are none.
    """

    def __init__(self, batch: int, no_time: Tensor) -> None:
        nothing = torch.empty(0, dtype=torch.int64, device=no_time.device)
        self._parts = [(nothing, nothing, no_time, no_time.detach(), nothing)]
        self._counts = torch.zeros(batch, dtype=torch.int64, device=no_time.device)

    def add(self, sample: Tensor, neuron: Tensor, time: Tensor, slope: Tensor, after: Tensor) -> None:
        """Spikes in any order, of samples that may repeat."""
        if len(sample):
            self._parts.append((sample, neuron, time, slope, after))
            self._counts += torch.bincount(sample, minlength=len(self._counts))
            check_spike_count(int(self._counts.max()))

    def tape(self) -> Tape:
        """The spikes in rows, each ordered by ``after``, then time, then neuron."""
        sample, neuron, time, slope, after = (torch.cat(list(part)) for part in zip(*self._parts, strict=True))
        order = torch.arange(len(sample), device=sample.device)
        for key in (neuron, time, after, sample):
            order = order[key[order].argsort(stable=True)]
        columns = ((time, math.inf), (neuron, -1), (slope, math.inf), (after, -1))
        return Tape(*(padded_rows(values[order], sample[order], len(self._counts), fill) for values, fill in columns))
