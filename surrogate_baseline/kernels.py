"""The loop over time on the CPU, in numba: every thread walks a block of neurons through all steps."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from eventprop.jit import OPTIONS, arrays, jit, threads

from .dynamics import Dynamics
from .surrogates import SURROGATES, BuiltIn, derivative

BLOCK = 1024
FORMULAS = tuple(register_jitable(**OPTIONS)(surrogate.formula) for surrogate in SURROGATES.values())
ARCTAN, SIGMOID, FAST_SIGMOID, PIECEWISE_QUADRATIC, TRIANGULAR, GAUSSIAN, GIVEN = range(7)
arctan, sigmoid, fast_sigmoid, piecewise_quadratic, triangular, gaussian = FORMULAS


def fire(x: Tensor, cell: Dynamics) -> tuple[Tensor, Tensor]:
    """Spikes and potentials before reset, both [T, M], from the input ``x`` [T, M]."""
    spikes, h = torch.empty_like(x), torch.empty_like(x)
    with threads():
        _fire(*arrays(x, spikes, h), *cell[:5])
    return spikes, h


def fire_adjoint(grad: Tensor, h: Tensor, cell: Dynamics) -> Tensor:
    """dL/dx [T, M] from ``grad`` = dL/dspikes."""
    surrogate = cell.surrogate
    if isinstance(surrogate, BuiltIn):
        kind, slope, grad_x = list(SURROGATES.values()).index(type(surrogate)), surrogate.slope, torch.empty_like(h)
    else:
        kind, slope, grad_x = GIVEN, 1.0, derivative(surrogate, h - cell.v_th)
    with threads():
        _fire_adjoint(*arrays(grad, h, grad_x), kind, slope, *cell[:6])
    return grad_x


@jit(parallel=True)
def _fire(x, spikes, h, keep, gain, v_th, rest, soft):
    real = h.dtype.type
    leak, keep, gain, v_th, rest = real((1.0 - keep) * rest), real(keep), real(gain), real(v_th), real(rest)
    for block in numba.prange(-(-h.shape[1] // BLOCK)):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, h.shape[1])
        v = np.full(end - begin, rest, h.dtype)
        for t in range(len(h)):
            for n in range(end - begin):
                h_n = gain * x[t, begin + n] + keep * v[n] + leak
                fired = h_n >= v_th
                h[t, begin + n] = h_n
                spikes[t, begin + n] = real(1.0) if fired else real(0.0)
                v[n] = (h_n - v_th if soft else rest) if fired else h_n


@jit
def _derivative(kind, x, k):
    if kind == ARCTAN:
        return arctan(x, k)
    if kind == SIGMOID:
        return sigmoid(x, k)
    if kind == FAST_SIGMOID:
        return fast_sigmoid(x, k)
    if kind == PIECEWISE_QUADRATIC:
        return piecewise_quadratic(x, k)
    if kind == TRIANGULAR:
        return triangular(x, k)
    return gaussian(x, k)


@jit(parallel=True)
def _fire_adjoint(grad, h, grad_x, kind, slope, keep, gain, v_th, rest, soft, detach_reset):
    """``grad_x`` holds the surrogate derivatives if ``kind`` is GIVEN."""
    real = h.dtype.type
    slope, keep, gain, v_th, rest = real(slope), real(keep), real(gain), real(v_th), real(rest)
    for block in numba.prange(-(-h.shape[1] // BLOCK)):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, h.shape[1])
        later = np.zeros(end - begin, h.dtype)  # keep dH_{t+1}
        g = np.empty(end - begin, h.dtype)
        for t in range(len(h) - 1, -1, -1):
            if kind == GIVEN:
                g[:] = grad_x[t, begin:end]
            else:
                for n in range(end - begin):
                    g[n] = _derivative(kind, h[t, begin + n] - v_th, slope)
            for n in range(end - begin):
                h_n = h[t, begin + n]
                a = real(1.0) if soft or h_n < v_th else real(0.0)
                if not detach_reset:
                    a += -v_th * g[n] if soft else (rest - h_n) * g[n]
                grad_h = grad[t, begin + n] * g[n] + a * later[n]
                grad_x[t, begin + n] = gain * grad_h
                later[n] = keep * grad_h
