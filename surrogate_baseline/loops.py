"""The loop over time in plain torch, for devices without numba kernels: the same functions as in ``kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from .dynamics import Dynamics
from .surrogates import derivative


def fire(x: Tensor, cell: Dynamics) -> tuple[Tensor, Tensor]:
    """Spikes and potentials before reset, both [T, M], from the input ``x`` [T, M]."""
    h, spikes = cell.gain * x, torch.empty_like(x)
    v = torch.full_like(x[:1].sum(0), cell.rest)
    for h_t, spikes_t in zip(h, spikes, strict=True):
        h_t.add_(v, alpha=cell.keep).add_((1.0 - cell.keep) * cell.rest)
        torch.ge(h_t, cell.v_th, out=spikes_t)
        v = torch.sub(h_t, spikes_t, alpha=cell.v_th) if cell.soft else h_t.masked_fill(spikes_t > 0, cell.rest)
    return spikes, h


def fire_adjoint(grad: Tensor, h: Tensor, cell: Dynamics) -> Tensor:
    """dL/dx [T, M] from ``grad`` = dL/dspikes."""
    g = derivative(cell.surrogate, h - cell.v_th)
    a = torch.ones_like(h) if cell.soft else (h < cell.v_th).to(h)
    if not cell.detach_reset:
        a = a - cell.v_th * g if cell.soft else a + (cell.rest - h) * g
    grad_h = grad * g
    for t in range(len(grad_h) - 2, -1, -1):
        grad_h[t].addcmul_(a[t], grad_h[t + 1], value=cell.keep)
    return cell.gain * grad_h
