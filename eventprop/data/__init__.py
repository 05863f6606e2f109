"""Data sets, one per module."""

from .dataset import DataError, Dataset, Split
from .delayed_match import load_delayed_match
from .mnist import load_fashion_mnist, load_mnist
from .yin_yang import load_yin_yang

__all__ = ["DataError", "Dataset", "Split", "load_delayed_match", "load_fashion_mnist", "load_mnist", "load_yin_yang"]
