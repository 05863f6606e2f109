"""Networks that the training command builds."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from .checks import whole
from .layers import SpikingLayer, SpikingLinear
from .losses import Objective
from .neuron import LIF
from .solver import Solver


def fully_connected(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: LIF,
    solver: Solver,
    *,
    hidden: list[int],
    weight_mean: list[float] | None = None,
    weight_std: list[float] | None = None,
    **factory,
) -> nn.Sequential:
    """Spiking hidden layers of the sizes ``hidden``, then the output layer of the objective.

    Args:
        weight_mean, weight_std: of the normal distributions of the initial weights, one number for each layer, output
            included; None for the rule of ``SpikingLinear.reset_parameters``.
        factory: ``device`` and ``dtype``.
    """
    sizes = [in_features, *(whole("model.hidden", size, minimum=1) for size in hidden)]
    synapses = {"neuron": neuron, "solver": solver, **factory}
    layers: list[nn.Module] = [SpikingLinear(m, n, **synapses) for m, n in pairwise(sizes)]
    layers.append(objective.output_layer(sizes[-1], num_classes, **synapses))
    return _initialised(layers, weight_mean, weight_std)


def convolutional(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: LIF,
    solver: Solver,
    *,
    image: list[int],
    channels: list[int],
    kernel_size: int,
    stride: int,
    weight_mean: list[float] | None = None,
    weight_std: list[float] | None = None,
    **factory,
) -> nn.Sequential:
    """Spiking convolutions, then the output layer of the objective; for the solver on a time grid.

    Args:
        image: channels, height and width of the input.
        channels: of each convolution.
        kernel_size, stride: of all convolutions; they have no padding.
        weight_mean, weight_std: as for ``fully_connected``.
        factory: ``device`` and ``dtype``.
    """
    if len(image) != 3 or math.prod(image) != in_features:
        raise ValueError(
            f"model.image must be channels, height and width of the {in_features} inputs, got {image}; "
            f"{[1, 28, 28]} would be MNIST's"
        )
    kernel_size, stride = whole("model.kernel_size", kernel_size, 1), whole("model.stride", stride, 1)
    sizes = [image[0], *(whole("model.channels", size, minimum=1) for size in channels)]
    height, width = image[1:]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if min(height, width) < kernel_size:
            raise ValueError(f"model.kernel_size={kernel_size} exceeds the {height} x {width} input of a convolution")
        synapses: nn.Module = nn.Conv2d(inputs, outputs, kernel_size, stride, bias=False, **factory)
        if not layers:  # spikes come flat from the encoder
            synapses = nn.Sequential(nn.Unflatten(1, tuple(image)), synapses)
        layer = SpikingLayer(synapses, neuron=neuron, solver=solver)
        layer.reset_parameters()
        layers.append(layer)
        height, width = ((size - kernel_size) // stride + 1 for size in (height, width))
    features = sizes[-1] * height * width
    layers.append(objective.output_layer(features, num_classes, neuron=neuron, solver=solver, **factory))
    return _initialised(layers, weight_mean, weight_std)


def _initialised(
    layers: list[nn.Module], weight_mean: list[float] | None, weight_std: list[float] | None
) -> nn.Sequential:
    """A network with the given normal distributions of weights, if any."""
    if (weight_mean is None) != (weight_std is None):
        raise ValueError("model.weight_mean and model.weight_std must be given together, or both be null")
    if weight_mean is not None and weight_std is not None:
        for name, values in (("model.weight_mean", weight_mean), ("model.weight_std", weight_std)):
            if len(values) != len(layers):
                raise ValueError(f"{name} must have one number for each of the {len(layers)} layers, got {values}")
        for layer, mean, std in zip(layers, weight_mean, weight_std, strict=True):
            for weight in layer.parameters():
                nn.init.normal_(weight, mean, std)
    return nn.Sequential(*layers)
