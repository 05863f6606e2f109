"""Data sets, one per module."""

from eventprop.data.dataset import DataError, Dataset, Split
from eventprop.data.delayed_match import load_delayed_match
from eventprop.data.mnist import load_fashion_mnist, load_mnist
from eventprop.data.yin_yang import load_yin_yang

__all__ = ["DataError", "Dataset", "Split", "load_delayed_match", "load_fashion_mnist", "load_mnist", "load_yin_yang"]
