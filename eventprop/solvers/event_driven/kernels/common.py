"""What the kernels share: weights by input, sums of their gradients, and the walk over arrivals."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from ...compilation.jit import arrays, jit, threads

STRIP = 16  # rows at once: a constant, so that their loop becomes vector instructions


def input_major(weight: Tensor) -> Tensor:
    """``weight`` [N, M] as [M, N], contiguous: an arriving spike reads one row."""
    (rows,) = arrays(weight)
    with threads():
        return torch.from_numpy(transposed_sum(rows, rows[:0]))


def weight_gradient(shares: np.ndarray) -> Tensor:
    """[N, M] the sum of the ``shares`` [C, M, N] that chunks of samples have in the gradient; these are used up."""
    for share in shares[1:-1]:
        shares[0] += share
    return torch.from_numpy(transposed_sum(shares[0], shares[-1] if len(shares) > 1 else shares[0, :0]))


@jit(parallel=True)
def transposed_sum(first, second):
    """[M, N] (``first`` + ``second``)^T of two arrays [N, M]; the second may be empty, [0, M]."""
    height, width = first.shape
    result = np.empty((width, height), first.dtype)
    for strip in numba.prange(-(-height // STRIP)):
        top = strip * STRIP
        if top + STRIP > height:
            for column in range(width):
                for row in range(top, height):
                    result[column, row] = first[row, column]
                    if len(second):
                        result[column, row] += second[row, column]
        elif len(second):
            for column in range(width):
                for k in range(STRIP):
                    result[column, top + k] = first[top + k, column] + second[top + k, column]
        else:
            for column in range(width):
                for k in range(STRIP):
                    result[column, top + k] = first[top + k, column]
    return result


TINY = 1e-200  # coefficients of eq. (5) below: their products with potentials may lose digits, and then vanish


@jit
def last_together(i, time, index, weight_t, first):
    """The last arrival at the time of arrival ``first``. The weights of those before it are added to I (eq. 4); its own are
    left to the caller, whose pass over the neurons can add them on the way."""
    e = first
    while e + 1 < len(time) and time[e + 1] == time[first]:
        row = weight_t[index[e]]
        for n in range(len(i)):
            i[n] += row[n]
        e += 1
    return e


@jit
def arrivals_before(time, t_end):
    return np.searchsorted(time, t_end)
