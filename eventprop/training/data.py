"""Data sets as batches of what a network takes: encoded once and kept, or encoded batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eventprop.core.spikes import Spikes
from eventprop.data import Split

CHUNK = 10_000  # samples encoded at once, to bound the memory that sorting takes
EVALUATION = 0  # the "epoch" of batches to evaluate on; those to train on count from 1


Part = Callable[[Tensor], Tensor]


def whole_batch(rows: Tensor) -> Tensor:
    """All rows of a batch: the part of the only process."""
    return rows


class BatchEncoder(ABC):
    """An encoder that is applied to each batch anew, because it is random or its output is too large to keep."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[T, B, inputs] from ``images`` [B, ...] in [0, 1], or uint8 in 0..255."""


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Encoded samples, in memory as sorted spike trains; batches are index selections."""

    spikes: Spikes
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_inputs(self) -> int:
        return self.spikes.num_neurons

    @cached_property
    def _filled(self) -> Tensor:
        """[n] how many columns each sample fills: known once, and not looked for in every batch."""
        return (self.spikes.index >= 0).sum(1).cpu()

    def batches(
        self, size: int, order: Tensor | None = None, epoch: int = EVALUATION, first: int = 0, part: Part = whole_batch
    ) -> Iterator[tuple[Spikes, Tensor]]:
        """Batches of ``size`` samples in the given order, by default the stored one, from batch number ``first`` on; the last
        may be smaller. Of each, the ``part`` of its rows that is wanted."""
        for rows in _rows(len(self), size, order)[first:]:
            rows = part(rows)
            columns = int(self._filled[rows].max()) if len(rows) else 0
            yield self.spikes.select(rows, columns), self.labels[rows]


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Samples that are encoded batch by batch; what is random depends on ``seed``, epoch and batch alone."""

    images: Tensor
    labels: Tensor
    encoder: BatchEncoder
    dtype: torch.dtype
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_inputs(self) -> int:
        return self.images[0].numel()

    def batches(
        self, size: int, order: Tensor | None = None, epoch: int = EVALUATION, first: int = 0, part: Part = whole_batch
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ``size`` samples in the given order, by default the stored one, from batch number ``first`` on; the last
        may be smaller. Of each, the ``part`` of its rows that is wanted."""
        generator = torch.Generator(self.images.device)
        for k, rows in enumerate(_rows(len(self), size, order)[first:], first):
            generator.manual_seed(mixed_seed(self.seed, epoch, k))
            # the whole batch, on which what is random depends
            whole = self.encoder(self.images[rows], generator).to(self.dtype)
            mine = part(torch.arange(len(rows)))
            yield (whole if len(mine) == len(rows) else whole[:, mine]), self.labels[rows[mine]]


def encode(
    split: Split,
    encoder: Callable[[Tensor], Spikes] | BatchEncoder,
    dtype: torch.dtype,
    device: str,
    seed: int,
) -> EncodedSplit | ImageSplit:
    """The samples on ``device``, encoded and kept as compact tensors where the encoder makes spike trains."""
    labels = split.labels.to(device)
    if isinstance(encoder, BatchEncoder):
        return ImageSplit(split.images.to(device), labels, encoder, dtype, seed)
    chunks = [encoder(images) for images in split.images.split(CHUNK)]
    compact = torch.int16 if chunks[0].num_neurons < 2**15 else torch.int32
    spikes = Spikes.cat(
        [Spikes(c.time.to(dtype), c.index.to(compact), c.num_neurons, shape=c.shape, height=c.height) for c in chunks]
    )
    return EncodedSplit(spikes.to(device), labels)


def mixed_seed(*parts: int) -> int:
    """A seed that depends on all ``parts``; zeros at their end make no difference."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in one epoch: a permutation that depends on ``seed`` and ``epoch`` alone."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def _rows(n: int, size: int, order: Tensor | None) -> tuple[Tensor, ...]:
    return (torch.arange(n) if order is None else order).split(size)
