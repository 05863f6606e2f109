"""What the kernels share: the walk over arrivals, and the way from tensors to arrays and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from torch import Tensor

from ..jit import config, jit
from ..threads import kernel_threads


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


@contextmanager
def threads() -> Iterator[None]:
    """Run numba with the kernels' number of threads, and give the caller's number back."""
    saved = numba.get_num_threads()
    numba.set_num_threads(min(kernel_threads(), config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(saved)
