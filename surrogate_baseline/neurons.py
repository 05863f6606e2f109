"""Neurons of the surrogate baseline: modules that map inputs [T, B, ...] of all steps to spikes [T, B, ...].

Each call starts from rest, so no state goes from one batch to the next. The loop over time and its gradient are written
out: in every step

    charge   H_t = V_{t-1} + (X_t - (V_{t-1} - V_r)) / tau     leaky;   H_t = V_{t-1} + X_t   integrate-and-fire
    fire     S_t = 1 where H_t >= v_th, else 0;                dS/dH := surrogate(H_t - v_th)
    reset    V_t = H_t (1 - S_t) + V_r S_t   hard;             V_t = H_t - v_th S_t   soft (V_r = None)

so that, with k = dH_t/dV_{t-1}, the gradient with respect to H_t follows the recursion

    dH_t = dS_t g_t + k A_t dH_{t+1},    g_t = surrogate(H_t - v_th),    A_t = dV_t/dH_t
    A_t = 1 - S_t + (V_r - H_t) g_t   hard;    1 - v_th g_t   soft;    without the term in g_t if the reset is detached
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eventprop.checks import positive

from .surrogates import Arctan, Surrogate


def _loops(device: torch.device) -> ModuleType:
    if device.type == "cpu":
        from . import kernels  # imported here: numba is slow to import

        return kernels
    from . import loops

    return loops


ARCTAN = Arctan()


class _Fire(torch.autograd.Function):
    """Charge, fire and reset over all steps; returns the spikes and, for monitors, the potentials H before reset."""

    @staticmethod
    def forward(
        x: Tensor,
        keep: float,
        gain: float,
        v_th: float,
        v_reset: float | None,
        detach_reset: bool,
        surrogate: Surrogate,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        h, spikes = gain * x, torch.empty_like(x)
        _loops(x.device).fire(h.flatten(1), spikes.flatten(1), keep, v_th, v_reset)
        return spikes, h

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.keep, ctx.gain, ctx.v_th, ctx.v_reset, ctx.detach_reset, ctx.surrogate = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        spikes, h = ctx.saved_tensors
        g = ctx.surrogate(h - ctx.v_th)
        if ctx.v_reset is None:
            a = torch.ones_like(h) if ctx.detach_reset else 1.0 - ctx.v_th * g
        else:
            a = 1.0 - spikes if ctx.detach_reset else 1.0 - spikes + (ctx.v_reset - h) * g
        grad_h = (grad * g).contiguous()
        _loops(h.device).fire_adjoint(grad_h.flatten(1), a.flatten(1), ctx.keep)
        return ctx.gain * grad_h, None, None, None, None, None, None


class IF(nn.Module):
    """Integrate-and-fire neurons.

    Args:
        v_th: threshold.
        v_reset: potential after a spike, and rest; None for a soft reset, which subtracts ``v_th``.
        detach_reset: leave the reset out of the gradient.
        surrogate: derivative of a spike with respect to H - v_th; one of ``surrogates``, or a function.
    """

    keep, gain = 1.0, 1.0

    def __init__(
        self,
        v_th: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: Surrogate = ARCTAN,
    ) -> None:
        super().__init__()
        self.v_th, self.v_reset, self.detach_reset, self.surrogate = (
            positive("v_th", v_th),
            v_reset,
            detach_reset,
            surrogate,
        )
        if v_reset is not None and not v_reset < v_th:
            raise ValueError(f"v_reset must be below v_th={v_th}, or None for a soft reset; got {v_reset}")

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes_and_potential(x)[0]

    def spikes_and_potential(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes and potentials before reset, both [T, B, ...]."""
        if x.dim() < 2:
            raise ValueError(f"input must have shape [T, B, ...], got {list(x.shape)}")
        return _Fire.apply(x, self.keep, self.gain, self.v_th, self.v_reset, self.detach_reset, self.surrogate)

    def extra_repr(self) -> str:
        return f"v_th={self.v_th}, v_reset={self.v_reset}, detach_reset={self.detach_reset}, surrogate={self.surrogate}"


class LIF(IF):
    """Leaky integrate-and-fire neurons.

    Args:
        tau: membrane time constant in steps, > 1; further arguments as for ``IF``.
    """

    def __init__(self, tau: float = 2.0, **options) -> None:
        super().__init__(**options)
        if not positive("tau", tau) > 1.0:
            raise ValueError(f"tau must be > 1 step, got {tau}; without a leak, use IF")
        self.tau = tau
        self.keep, self.gain = 1.0 - 1.0 / tau, 1.0 / tau

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"
