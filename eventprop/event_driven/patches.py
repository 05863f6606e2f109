"""Convolution, event by event: an output position is a layer whose inputs are the spikes in its receptive field.

``unfold`` gives every position of every sample a spike train of its own; the solver for fully connected layers takes these,
with the channels of a position as its neurons; ``fold`` puts what the positions emit back together. So a spike costs as
many updates as there are positions that see it; every position of every sample costs a row of buffers.

Shapes: B samples, P positions, K arrivals, L of them in the fullest receptive field, S emitted spikes.
"""

from __future__ import annotations

import inspect
import math
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..spikes import Spikes
from ..window import Window


def unfold(spikes: Spikes, window: Window, backend: ModuleType) -> Spikes:
    """[B P, L] for each position the spikes in its receptive field, as spikes of channels x kernel_size neurons."""
    time, synapse, _ = _Unfold.apply(spikes.time, spikes.index.long(), window, backend)
    return Spikes._trusted(time, synapse, (window.channels, *window.kernel_size), None, spikes.height)


def fold(patches: Spikes, window: Window, backend: ModuleType) -> Spikes:
    """[B, S] the spikes of all positions of a sample, sorted by time; of neurons [channels, height, width]."""
    time, neuron, slope, _ = _Fold.apply(patches.time, patches.index, patches.slope, math.prod(window.out), backend)
    return Spikes._trusted(time, neuron, (patches.num_neurons, *window.out), slope)


class _Unfold(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, window: Window, backend: ModuleType) -> tuple[Tensor, ...]:
        return backend.unfold(time, index, window)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, _, _, ctx.backend = inputs
        ctx.shape = time.shape
        _remember(ctx, output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        return None if grad is None else ctx.backend.put_back(grad, *ctx.saved_tensors, ctx.shape), None, None, None


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, slope: Tensor, positions: int, backend: ModuleType) -> tuple[Tensor, ...]:
        return backend.fold(time, index, slope, positions)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, _, _, positions, ctx.backend = inputs
        ctx.shape = (len(time) // positions, positions * time.shape[1])
        ctx.patches = time.shape
        _remember(ctx, output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is not None:
            grad = ctx.backend.put_back(grad, *ctx.saved_tensors, ctx.shape).reshape(ctx.patches)
        return grad, None, None, None, None


def _remember(ctx, output: tuple[Tensor, ...]) -> None:
    """Save the last output, which tells where the times in the first come from; only these are differentiable."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[-1])


for _function in (_Unfold, _Fold):  # as in ``solver``
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore
