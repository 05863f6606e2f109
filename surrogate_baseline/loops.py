"""The loop over time in plain torch, for devices without numba kernels: the same functions as in ``kernels``."""

from __future__ import annotations

import torch
from torch import Tensor


def fire(h: Tensor, spikes: Tensor, keep: float, v_th: float, v_reset: float | None) -> None:
    """From ``h`` [T, M], the charge of each step, make the potential before reset in place; fill ``spikes`` [T, M]."""
    rest = 0.0 if v_reset is None else v_reset
    v = torch.full_like(h[:1].sum(0), rest)
    for h_t, spikes_t in zip(h, spikes, strict=True):
        h_t.add_(v, alpha=keep).add_((1.0 - keep) * rest)
        torch.ge(h_t, v_th, out=spikes_t)
        v = torch.sub(h_t, spikes_t, alpha=v_th) if v_reset is None else h_t.masked_fill(spikes_t > 0, rest)


def fire_adjoint(grad_h: Tensor, a: Tensor, keep: float) -> None:
    """dH_t += keep A_t dH_{t+1} in place, from the last step to the first; both [T, M]."""
    for t in range(len(grad_h) - 2, -1, -1):
        grad_h[t].addcmul_(a[t], grad_h[t + 1], value=keep)
