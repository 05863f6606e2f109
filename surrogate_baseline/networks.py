"""Rate-coded networks that the training command builds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from eventprop.core.checks import whole

from .layers import Dropout, Linear, Stepwise
from .losses import Objective
from .neurons import IF, LIF
from .surrogates import Surrogate


@dataclass(frozen=True)
class Steps:
    """The solver of rate-coded networks: neurons advance once per step of their input.

    Attributes:
        surrogate: derivative of a spike.
        detach_reset: leave the reset out of the gradient.
    """

    surrogate: Surrogate
    detach_reset: bool


def integrate_and_fire(*, v_th: float, v_reset: float | None, **gradient) -> IF:
    return IF(v_th, v_reset, **gradient)


def leaky_integrate_and_fire(*, tau: float, v_th: float, v_reset: float | None, **gradient) -> LIF:
    return LIF(tau, v_th=v_th, v_reset=v_reset, **gradient)


def rate_fully_connected(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: Callable[..., IF],
    solver: Steps,
    *,
    hidden: list[int],
    bias: bool,
    dropout: float,
    **factory,
) -> nn.Sequential:
    """Linear layers with neurons behind each: hidden ones of the sizes ``hidden``, then the output of the objective.

    Args:
        bias: whether the linear layers have one.
        dropout: share of the hidden neurons that are left out in training, anew for each sample.
        factory: ``device`` and ``dtype``.
    """
    make = _maker(neuron, solver)
    sizes = [in_features, *(whole("model.hidden", size, minimum=1) for size in hidden)]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Linear(inputs, outputs, bias, **factory), make(), Dropout(dropout)]
    return nn.Sequential(*layers, Linear(sizes[-1], num_classes, bias, **factory), objective.output(make))


def rate_convolutional(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: Callable[..., IF],
    solver: Steps,
    *,
    image: list[int],
    channels: list[int],
    kernel_size: int,
    hidden: list[int],
    dropout: float,
    **factory,
) -> nn.Sequential:
    """Blocks of convolution, batch normalisation, neurons and 2 x 2 maximum pooling, then ``rate_fully_connected``.

    Args:
        image: channels, height and width of the input.
        channels: of each convolution.
        kernel_size: odd, of all convolutions, which keep the size of the image.
        hidden: sizes of the hidden layers after the blocks.
        dropout: share of the neurons before each linear layer that are left out in training, anew for each sample.
        factory: ``device`` and ``dtype``.
    """
    if len(image) != 3 or math.prod(image) != in_features:
        raise ValueError(
            f"model.image must be channels, height and width of the {in_features} inputs, got {image}; "
            f"{[1, 28, 28]} would be MNIST's"
        )
    if whole("model.kernel_size", kernel_size, 1) % 2 == 0:
        raise ValueError(f"model.kernel_size must be odd, got {kernel_size}")
    if min(image[1:]) < 2 ** len(channels):
        raise ValueError(f"model.channels must be at most {int(math.log2(min(image[1:])))} numbers, got {channels}")
    make = _maker(neuron, solver)
    sizes = [image[0], *(whole("model.channels", size, minimum=1) for size in channels)]
    layers: list[nn.Module] = [nn.Unflatten(2, tuple(image))]
    for inputs, outputs in pairwise(sizes):
        convolution = nn.Conv2d(inputs, outputs, kernel_size, padding="same", bias=False, **factory)
        normalised = nn.Sequential(convolution, nn.BatchNorm2d(outputs, **factory))
        layers += [Stepwise(normalised.to(memory_format=torch.channels_last)), make(), Stepwise(nn.MaxPool2d(2))]
    height, width = (size // 2 ** len(channels) for size in image[1:])
    rest = rate_fully_connected(
        sizes[-1] * height * width, num_classes, objective, neuron, solver,
        hidden=hidden, bias=False, dropout=dropout, **factory,
    )  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(2), Dropout(dropout), *rest)


def _maker(neuron: object, solver: object) -> Callable[[], IF]:
    """A function that makes one layer of neurons."""
    if not isinstance(solver, Steps):
        raise ValueError(f"a rate-coded model needs solver=steps, got {solver}")
    if not isinstance(neuron, functools.partial):
        raise ValueError(f"a rate-coded model needs neuron=lif_steps or if_steps, got {neuron}")
    return functools.partial(neuron, surrogate=solver.surrogate, detach_reset=solver.detach_reset)
