"""A batch in chunks of samples, for parallel tasks of the kernels, and the sum of what chunks give to a gradient of weights."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from .compilation.jit import inlined, jit

# Every chunk of samples but the first has a weight gradient of its own, to be added up: more chunks for more threads, fewer for
# less memory to walk through. Sums must not depend on the number of threads, so chunks depend on the shapes alone.
CHUNK, FEWEST_TASKS, MOST_TASKS = 32, 2, 4  # samples; backward tasks
STRIP = 16  # rows at once: a constant, so that their loop becomes vector instructions


def backward_tasks(batch: int) -> int:
    """How many tasks share the backward pass of a batch."""
    return min(max(batch // CHUNK, FEWEST_TASKS), MOST_TASKS)


@inlined
def part_of(part, parts, total):
    """Of ``total`` samples, or neurons, in equal parts: the first of a part, and the one after its last."""
    return part * total // parts, (part + 1) * total // parts


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
