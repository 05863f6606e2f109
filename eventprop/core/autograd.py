"""What all backward passes share: they are right once, and refuse to be differentiated again. And the flow of a neuron,
differentiable in its time constants too."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from .neuron import decay_by_tau, two_decays


def specialized(*settings):
    """The same neurons and solvers, data classes whose floats are constants to ``torch.compile``. With dynamic=True it takes
    them for symbols, which operators do not accept."""
    if not torch.compiler.is_compiling():
        return settings
    return tuple(type(x)(**{f.name: _constant(getattr(x, f.name)) for f in dataclasses.fields(x)}) for x in settings)


def _constant(value):
    from torch.fx.experimental.symbolic_shapes import guard_scalar  # imported here: it is slow to import

    return guard_scalar(value) if isinstance(value, float) else value


class FirstOrder(torch.autograd.Function):
    """A function whose backward pass is not differentiable; whoever does differentiate it gets an error and not zeros.

    Subclasses have ``forward`` without ctx, ``setup_context`` and ``backward``, and work under ``torch.func`` as far as what
    they call does.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        # torch asks for it in every call, and to work it out takes a good part of a small step. Type checkers do not know that
        # functions may have this attribute (PEP 362)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
        cls.backward = staticmethod(_once(cls.backward))  # type: ignore[method-assign]

    @classmethod
    def of(cls, *inputs):
        """``apply``, with an error that says what there is where forward mode is asked for."""
        try:
            return cls.apply(*inputs)
        except NotImplementedError as error:
            if "jvp" not in str(error):
                raise
            raise NotImplementedError(
                "eventprop has no forward-mode derivatives (torch.func.jvp, jacfwd, torch.autograd.forward_ad); use reverse "
                "mode: backward, torch.func.vjp or jacrev"
            ) from error


def _once(backward: Callable) -> Callable:
    @functools.wraps(backward)
    def guarded(ctx, *grads):
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return results
        return _guarded(results, [x for x in (*grads, *ctx.saved_tensors) if x is not None])

    return guarded


def _guarded(results: tuple[Tensor | None, ...] | Tensor, causes: list[Tensor]):
    """The ``results`` of a backward pass, which depend on the ``causes``."""
    several = isinstance(results, tuple)
    known = [x for x in (results if several else (results,)) if x is not None]
    if not known or not any(x.requires_grad for x in causes):
        return results
    found = iter(_SecondDerivative.apply(len(known), *known, *causes))
    guarded = tuple(None if x is None else next(found) for x in (results if several else (results,)))
    return guarded if several else guarded[0]


class _SecondDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "eventprop's gradients cannot be differentiated again: a second derivative (torch.autograd.functional.hessian, "
            "torch.func.hessian, a gradient penalty, create_graph=True) is not offered. Take differences of gradients "
            "instead, or detach the gradient"
        )


def differentiable_decay(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (5) for tensors that broadcast, differentiable in all three, also where time constants are equal."""
    return _Decay.of(*torch.broadcast_tensors(dt, tau_mem, tau_syn))


def elementwise_decay(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (5) for tensors that broadcast."""
    slow, fast, h = two_decays(dt, torch.maximum(tau_mem, tau_syn), torch.minimum(tau_mem, tau_syn))
    slow_membrane = tau_mem >= tau_syn
    return torch.where(slow_membrane, slow, fast), torch.where(slow_membrane, fast, slow), dt / tau_mem * h


class _Decay(FirstOrder):
    @staticmethod
    def forward(dt: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return elementwise_decay(dt, tau_mem, tau_syn)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx, grad_a, grad_s, grad_phi):
        dt, tau_mem, tau_syn, a, s, phi = ctx.saved_tensors
        a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(dt, a, s, phi, tau_mem, tau_syn)
        by_dt = -grad_a * a / tau_mem - grad_s * s / tau_syn + grad_phi * (s - phi) / tau_mem
        return by_dt, grad_a * a_mem + grad_phi * phi_mem, grad_s * s_syn + grad_phi * phi_syn
