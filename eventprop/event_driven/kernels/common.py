"""What the kernels share: the walk over arrivals, and the way from tensors to arrays and threads."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from ..jit import config, jit


@jit
def add_arrivals(i, time, index, weight_t, first):
    """Add to I the weights of all arrivals at the time of arrival ``first`` (eq. 4); return the arrival after them."""
    e = first
    while e < len(time) and time[e] == time[first]:
        row = weight_t[index[e]]
        for n in range(len(i)):
            i[n] += row[n]
        e += 1
    return e


@jit
def is_finite(state):
    """Written as a comparison: reordered sums would turn the x - x of np.isfinite into 0."""
    return abs(state.sum()) < np.inf


@jit
def arrivals_before(time, t_end):
    return np.searchsorted(time, t_end)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


class torch_threads:
    """Run numba with as many threads as torch uses, and give the caller's number back."""

    def __enter__(self) -> None:
        self.saved = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))

    def __exit__(self, *_: object) -> None:
        numba.set_num_threads(self.saved)
