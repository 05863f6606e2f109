"""Where gradients come from autograd: the flow of a neuron, differentiable in its time constants too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .neuron import decay_by_tau, two_decays


def differentiable_decay(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (5) for tensors that broadcast, differentiable in all three, also where time constants are equal."""
    return _Decay.apply(*torch.broadcast_tensors(dt, tau_mem, tau_syn))


def elementwise_decay(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (5) for tensors that broadcast."""
    slow, fast, h = two_decays(dt, torch.maximum(tau_mem, tau_syn), torch.minimum(tau_mem, tau_syn))
    slow_membrane = tau_mem >= tau_syn
    return torch.where(slow_membrane, slow, fast), torch.where(slow_membrane, fast, slow), dt / tau_mem * h


def first_order(x: Tensor) -> Tensor:
    """``x``, whose gradient cannot be differentiated again: ``create_graph=True`` is an error."""
    return _FirstOrder.apply(x)


class _Decay(torch.autograd.Function):
    @staticmethod
    def forward(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return elementwise_decay(dt, tau_mem, tau_syn)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_a, grad_s, grad_phi):
        dt, tau_mem, tau_syn, a, s, phi = ctx.saved_tensors
        a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(dt, a, s, phi, tau_mem, tau_syn)
        by_dt = -grad_a * a / tau_mem - grad_s * s / tau_syn + grad_phi * (s - phi) / tau_mem
        return by_dt, grad_a * a_mem + grad_phi * phi_mem, grad_s * s_syn + grad_phi * phi_syn


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of LearnableLIF and of delayed synapses on a grid cannot be differentiated again; leave out "
                "create_graph=True"
            )
        return grad
