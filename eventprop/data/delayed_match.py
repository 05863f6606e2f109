"""Delayed match to sample: are two patterns, shown one after the other, the same?"""

from __future__ import annotations

import numpy as np
import torch

from eventprop.core.checks import whole

from .dataset import Dataset, Split

NOISE = 0.05  # standard deviation of every value of a pattern


def load_delayed_match(
    n_train: int = 2000,
    n_validation: int = 500,
    n_test: int = 1000,
    patterns: int = 3,
    channels: int = 12,
    seed: int = 42,
) -> Dataset:
    """Generate the data set: samples [2, channels] of values in [0, 1], class 1 where both rows show the same pattern.

    The patterns are drawn once, and noise is added to each showing. Half of the samples match. Which pattern came first or
    second says nothing about the class, so a network must keep the first in memory until the second comes.
    """
    whole("patterns", patterns, minimum=2)
    shown = np.random.default_rng([seed, 3]).random((patterns, whole("channels", channels, minimum=1)))
    splits = [
        _sample(shown, whole(name, n, minimum=1), np.random.default_rng([seed, k]))
        for k, (name, n) in enumerate((("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)))
    ]
    return Dataset("delayed_match", "generated", 2, train=splits[0], validation=splits[1], test=splits[2])


def _sample(shown: np.ndarray, n: int, rng: np.random.Generator) -> Split:
    first, label = rng.integers(len(shown), size=n), rng.integers(2, size=n)
    other = (first + rng.integers(1, len(shown), size=n)) % len(shown)
    second = np.where(label == 1, first, other)
    values = shown[np.stack([first, second], axis=1)] + NOISE * rng.standard_normal((n, 2, shown.shape[1]))
    return Split(torch.from_numpy(values.clip(0.0, 1.0)).to(torch.get_default_dtype()), torch.from_numpy(label))
