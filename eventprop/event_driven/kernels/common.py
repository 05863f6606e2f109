"""The walk over arrivals, which the kernels share."""

from __future__ import annotations

import numpy as np

from ...jit import jit


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
def arrivals_before(time, t_end):
    return np.searchsorted(time, t_end)
