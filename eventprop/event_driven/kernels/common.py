"""The walk over arrivals, which the kernels share."""

from __future__ import annotations

import numpy as np

from ...jit import jit


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
