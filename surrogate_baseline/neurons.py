"""Neurons of rate-coded networks: modules that map inputs [T, B, ...] of all steps to spikes [T, B, ...].

The equations are in ``dynamics``. Each call starts from rest, so no state goes from one batch to the next.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor, nn

from eventprop.core.autograd import FirstOrder
from eventprop.core.checks import is_finite, positive
from eventprop.core.spikes import FLOATS
from eventprop.layers.linear import SpikingModule
from eventprop.solvers.tape import check_finite

from .dynamics import Dynamics
from .surrogates import ARCTAN, Surrogate, check_surrogate


def _loops(device: torch.device) -> ModuleType:
    if device.type == "cpu":
        from . import kernels  # imported here: numba is slow to import

        return kernels
    from . import loops

    return loops


class _Fire(FirstOrder):
    """All steps at once; returns the spikes and, for monitors, the potentials before reset, both [T, M]."""

    @staticmethod
    def forward(x: Tensor, cell: Dynamics) -> tuple[Tensor, Tensor]:
        spikes, h = _loops(x.device).fire(x, cell)
        check_finite(is_finite(h))  # of all steps: a hard reset makes an infinite V finite again
        return spikes, h

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.cell = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (h,) = ctx.saved_tensors
        return _loops(h.device).fire_adjoint(grad.contiguous(), h, ctx.cell), None


def _input(x: Tensor) -> Tensor:
    """A checked input, with enough precision for potentials to add up."""
    if x.dim() < 2:
        raise ValueError(f"input must have shape [T, B, ...], got {list(x.shape)}")
    return x if x.dtype in FLOATS else x.float()


class IF(SpikingModule):
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
        check_surrogate(surrogate)
        self.v_th, self.v_reset = positive("v_th", v_th), v_reset
        self.detach_reset, self.surrogate = detach_reset, surrogate
        if v_reset is not None and not -math.inf < v_reset < v_th:
            raise ValueError(f"v_reset must be below v_th={v_th}, or None for a soft reset; got {v_reset}")

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes_and_potential(x)[0]

    def spikes_and_potential(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes and potentials before reset, both [T, B, ...], as float32 or float64 also under autocast."""
        x = _input(x)
        soft = self.v_reset is None
        rest = 0.0 if self.v_reset is None else self.v_reset
        cell = Dynamics(self.keep, self.gain, self.v_th, rest, soft, self.detach_reset, self.surrogate)
        # neurons in the order in which memory has them, such as channels last
        order = [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]
        inverse = [order.index(d) for d in range(x.dim())]
        ordered = x.permute(order)
        spikes, h = (y.reshape(ordered.shape).permute(inverse) for y in _Fire.of(ordered.flatten(1).contiguous(), cell))
        return spikes, h

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


class Potential(nn.Module):
    """The potential [T, B, ...] that ``neuron`` would have if it did not spike."""

    def __init__(self, neuron: IF) -> None:
        super().__init__()
        self.keep, self.gain = neuron.keep, neuron.gain
        self.rest = 0.0 if neuron.v_reset is None else neuron.v_reset

    def forward(self, x: Tensor) -> Tensor:
        x = _input(x)
        v, potential = torch.full_like(x[:1].sum(0), self.rest), []
        for x_t in x:
            v = self.keep * v + (1.0 - self.keep) * self.rest + self.gain * x_t
            potential.append(v)
        check_finite(is_finite(v))  # what is not stays so
        return torch.stack(potential)
