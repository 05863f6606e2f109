"""The loop over time on the CPU, in numba: every thread walks a block of neurons through all steps."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from eventprop.jit import arrays, jit, threads

BLOCK = 1024


def fire(h: Tensor, spikes: Tensor, keep: float, v_th: float, v_reset: float | None) -> None:
    """From ``h`` [T, M], the charge of each step, make the potential before reset in place; fill ``spikes`` [T, M]."""
    with threads():
        _fire(*arrays(h, spikes), keep, v_th, np.nan if v_reset is None else v_reset)


def fire_adjoint(grad_h: Tensor, a: Tensor, keep: float) -> None:
    """dH_t += keep A_t dH_{t+1} in place, from the last step to the first; both [T, M]."""
    with threads():
        _fire_adjoint(*arrays(grad_h, a), keep)


@jit(parallel=True)
def _fire(h, spikes, keep, v_th, v_reset):
    real = h.dtype.type
    soft = np.isnan(v_reset)
    rest = real(0.0) if soft else real(v_reset)
    leak, keep, threshold, one, zero = real((1.0 - keep) * rest), real(keep), real(v_th), real(1.0), real(0.0)
    for block in numba.prange(-(-h.shape[1] // BLOCK)):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, h.shape[1])
        v = np.full(end - begin, rest, h.dtype)
        for t in range(len(h)):
            for n in range(end - begin):
                v_n = h[t, begin + n] + keep * v[n] + leak
                fired = v_n >= threshold
                h[t, begin + n] = v_n
                spikes[t, begin + n] = one if fired else zero
                v[n] = (v_n - threshold if soft else rest) if fired else v_n


@jit(parallel=True)
def _fire_adjoint(grad_h, a, keep):
    keep = grad_h.dtype.type(keep)
    for block in numba.prange(-(-grad_h.shape[1] // BLOCK)):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, grad_h.shape[1])
        for t in range(len(grad_h) - 2, -1, -1):
            for n in range(begin, end):
                grad_h[t, n] += keep * a[t, n] * grad_h[t + 1, n]
