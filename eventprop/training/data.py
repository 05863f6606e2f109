"""A data set encoded once, kept in memory as sorted spike trains; batches are index selections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import Split
from ..spikes import Spikes

CHUNK = 10_000  # samples encoded at once, to bound the memory that sorting takes


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Encoded samples, in memory."""

    spikes: Spikes
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Spikes, Tensor]]:
        """Batches of ``size`` samples in the given order, by default the stored one; the last may be smaller."""
        order = torch.arange(len(self)) if order is None else order
        for rows in order.split(size):
            yield self.spikes.select(rows), self.labels[rows]


def encode(split: Split, encoder: Callable[[Tensor], Spikes], dtype: torch.dtype, device: str) -> EncodedSplit:
    """Encode all samples and keep them as compact tensors on ``device``."""
    chunks = [encoder(images) for images in split.images.split(CHUNK)]
    compact = torch.int16 if chunks[0].num_neurons < 2**15 else torch.int32
    spikes = Spikes.cat([Spikes(chunk.time.to(dtype), chunk.index.to(compact), chunk.num_neurons) for chunk in chunks])
    return EncodedSplit(spikes.to(device), split.labels.to(device))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in one epoch: a permutation that depends on ``seed`` and ``epoch`` alone."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
