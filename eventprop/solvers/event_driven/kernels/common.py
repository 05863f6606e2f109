"""What the kernels share: weights by input, and the walk over arrivals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...chunks import transposed_sum
from ...compilation.jit import arrays, inlined, jit, threads

TINY = 1e-200  # coefficients of eq. (5) below: their products with potentials may lose digits, and then vanish


def input_major(weight: Tensor) -> Tensor:
    """``weight`` [N, M] as [M, N], contiguous: an arriving spike reads one row."""
    (rows,) = arrays(weight)
    with threads():
        return torch.from_numpy(transposed_sum(rows, rows[:0]))


def at_rest(batch: int, t_end: float) -> tuple[Tensor, Tensor]:
    """The state of a layer at rest, as the kernels take it, and [B] the end ``t_end`` of all samples."""
    return torch.empty((2, 0, 0), dtype=torch.float64), torch.full((batch,), t_end, dtype=torch.float64)


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


@inlined
def begin_with(state, v, i):
    """V and I of a sample from its ``state`` [2, 1, N]; as they are if that is empty."""
    if state.shape[1]:
        v[:], i[:] = state[0, 0], state[1, 0]


@jit
def arrivals_before(time, t_end):
    return np.searchsorted(time, t_end)


@inlined
def list_candidates(flags, by_eight, candidate):
    """Write where ``flags`` are set, which ``by_eight`` are the same memory eight at a time, and return how many are;
    ``candidate`` has room for one more."""
    candidates = 0
    for eight in range(len(by_eight)):
        if by_eight[eight] != 0:
            for n in range(8 * eight, 8 * eight + 8):
                candidate[candidates] = n
                candidates += flags[n]
    return candidates
