"""The loop over time on the CPU, in numba: every thread walks a block of neurons through all steps."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.solvers.compilation.jit import arrays, inlined, jit, threads

from .dynamics import Dynamics
from .surrogates import SURROGATES, BuiltIn, derivative

BLOCK = 1024
ARCTAN, SIGMOID, FAST_SIGMOID, PIECEWISE_QUADRATIC, TRIANGULAR, GAUSSIAN, GIVEN = range(7)


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
            x_t, h_t, spikes_t = x[t, begin:end], h[t, begin:end], spikes[t, begin:end]
            for n in range(len(v)):
                h_n = gain * x_t[n] + keep * v[n] + leak
                fired = h_n >= v_th
                h_t[n] = h_n
                spikes_t[n] = real(1.0) if fired else real(0.0)
                v[n] = (h_n - v_th if soft else rest) if fired else h_n


def _loop(surrogate):
    """A loop over ``surrogate`` alone: one that also chose among them would not become vector instructions."""
    formula = inlined(surrogate.formula)

    @inlined
    def derivatives(h, v_th, k, g):
        for n in range(len(g)):
            g[n] = formula(h[n] - v_th, k)

    return derivatives


arctan, sigmoid, fast_sigmoid, piecewise_quadratic, triangular, gaussian = map(_loop, SURROGATES.values())


@jit
def _derivatives(kind, h, v_th, k, given, g):
    """Write the surrogate derivatives at the potentials ``h`` to ``g``; those ``given`` if ``kind`` is GIVEN."""
    if kind == ARCTAN:
        arctan(h, v_th, k, g)
    elif kind == SIGMOID:
        sigmoid(h, v_th, k, g)
    elif kind == FAST_SIGMOID:
        fast_sigmoid(h, v_th, k, g)
    elif kind == PIECEWISE_QUADRATIC:
        piecewise_quadratic(h, v_th, k, g)
    elif kind == TRIANGULAR:
        triangular(h, v_th, k, g)
    elif kind == GAUSSIAN:
        gaussian(h, v_th, k, g)
    else:
        g[:] = given


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
            h_t, grad_t, grad_x_t = h[t, begin:end], grad[t, begin:end], grad_x[t, begin:end]
            _derivatives(kind, h_t, v_th, slope, grad_x_t, g)
            for n in range(len(g)):
                a = real(1.0) if soft or h_t[n] < v_th else real(0.0)
                if not detach_reset:
                    a += -v_th * g[n] if soft else (rest - h_t[n]) * g[n]
                grad_h = grad_t[n] * g[n] + a * later[n]
                grad_x_t[n] = gain * grad_h
                later[n] = keep * grad_h
