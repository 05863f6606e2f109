"""The Yin-Yang data set: three classes in the plane, too hard for a linear classifier.

L. Kriener, J. Goeltz, M. A. Petrovici, "The Yin-Yang dataset", NICE 2022, arXiv 2102.08211.
"""

from __future__ import annotations

import numpy as np
import torch

from eventprop.core.checks import whole

from .dataset import Dataset, Split

RADIUS, DOT_RADIUS = 0.5, 0.1  # of the disk and of the two dots in it
YIN, YANG, DOT = 0, 1, 2


def load_yin_yang(n_train: int = 5000, n_validation: int = 1000, n_test: int = 1000, seed: int = 42) -> Dataset:
    """Generate the data set: points of the three classes in equal shares, up to chance.

    A sample has five values in [0, 1]: x, y, 1 - x, 1 - y, and a constant 1, which latency coding turns into a bias spike
    at its ``t_min``.
    """
    splits = [
        _sample(whole(name, n, minimum=1), np.random.default_rng([seed, k]))
        for k, (name, n) in enumerate((("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)))
    ]
    return Dataset("yin_yang", "generated", 3, train=splits[0], validation=splits[1], test=splits[2])


def classify(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The class of each point of the disk: in one of the two dots, else in the yin or the yang part."""
    left, right = (np.hypot(x - c * RADIUS, y - RADIUS) for c in (0.5, 1.5))  # distances to the dots' centres
    dot = (left < DOT_RADIUS) | (right < DOT_RADIUS)
    yin = (left <= 0.5 * RADIUS) | ((y > RADIUS) & (right > 0.5 * RADIUS))
    return np.where(dot, DOT, np.where(yin, YIN, YANG))


def _sample(n: int, rng: np.random.Generator) -> Split:
    wanted = rng.integers(3, size=n)
    points = np.empty((n, 2))
    missing = np.arange(n)
    while len(missing):  # draw a point of the disk for every sample that still lacks one of its class
        x, y = rng.random((2, len(missing)))
        hit = (np.hypot(x - RADIUS, y - RADIUS) <= RADIUS) & (classify(x, y) == wanted[missing])
        points[missing[hit]] = np.stack([x, y], axis=1)[hit]
        missing = missing[~hit]
    values = np.concatenate([points, 1 - points, np.ones((n, 1))], axis=1)
    return Split(torch.from_numpy(values).to(torch.get_default_dtype()), torch.from_numpy(wanted))
