"""Convolution, event by event: an output position is a layer whose inputs are the spikes in its receptive field.

``unfold`` gives every position of every sample a spike train of its own; the solver for fully connected layers takes these,
with the channels of a position as its neurons; ``fold`` puts what the positions emit back together. So a spike costs as
many updates as there are positions that see it; every position of every sample costs a row of buffers.

Shapes: B samples, P positions, K arrivals, L of them in the fullest receptive field, S emitted spikes.
"""

from __future__ import annotations

import math

from torch import Tensor

from eventprop.core.autograd import FirstOrder
from eventprop.core.spikes import Spikes
from eventprop.core.window import Window

from . import operators


def unfold(spikes: Spikes, window: Window, backend: str) -> Spikes:
    """[B P, L] for each position the spikes in its receptive field, as spikes of channels x kernel_size neurons."""
    time, synapse, _ = _Unfold.of(spikes.time, spikes.index.long(), window, backend)
    return Spikes._trusted(time, synapse, (window.channels, *window.kernel_size), None, spikes.height)


def fold(patches: Spikes, window: Window, backend: str) -> Spikes:
    """[B, S] the spikes of all positions of a sample, sorted by time; of neurons [channels, height, width]."""
    time, neuron, slope, _ = _Fold.of(patches.time, patches.index, patches.slope, math.prod(window.out), backend)
    return Spikes._trusted(time, neuron, (patches.num_neurons, *window.out), slope)


class _Unfold(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, window: Window, backend: str) -> tuple[Tensor, ...]:
        return operators.unfold(time, index, window.numbers, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, _, _, ctx.backend = inputs
        _remember(ctx, time, output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None
        time, source = ctx.saved_tensors
        return operators.put_back(grad, source, *time.shape, ctx.backend), None, None, None


class _Fold(FirstOrder):
    @staticmethod
    def forward(time: Tensor, index: Tensor, slope: Tensor, positions: int, backend: str) -> tuple[Tensor, ...]:
        return operators.fold(time, index, slope, positions, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, _, _, ctx.positions, ctx.backend = inputs
        _remember(ctx, time, output)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, source = ctx.saved_tensors
        shape = (len(time) // ctx.positions, ctx.positions * time.shape[1])
        return operators.put_back(grad, source, *shape, ctx.backend).reshape(time.shape), None, None, None, None


def _remember(ctx, time: Tensor, output: tuple[Tensor, ...]) -> None:
    """Save the last output, which tells where the times in the first come from; only these are differentiable."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(time, output[-1])
