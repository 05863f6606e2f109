"""Networks that the training command builds."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from eventprop.core.checks import whole
from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.layers.augmentation import ShiftImage, SpikeDropout
from eventprop.layers.convolution import SpikingConv2d
from eventprop.layers.delays import DelayedSpikingLinear
from eventprop.layers.linear import SpikingLinear
from eventprop.layers.recurrent import SpikingRecurrent
from eventprop.losses import Objective
from eventprop.solvers.solver import Solver


def fully_connected(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: LIF,
    solver: Solver,
    *,
    hidden: list[int],
    shift: int = 0,
    dropout: float = 0.0,
    mean_delay: float | None = None,
    weight_mean: list[float] | None = None,
    weight_std: list[float] | None = None,
    **factory,
) -> nn.Sequential:
    """Spiking hidden layers of the sizes ``hidden``, then the output layer of the objective.

    Args:
        shift: by how many pixels at most to shift the image during training.
        dropout: the share of the spikes of each hidden layer to drop during training.
        mean_delay: of the initial delays in ms, learnable, of the synapses of the spiking layers; None for no delays.
        weight_mean, weight_std: of the normal distributions of the initial weights, one number for each layer, output
            included; None for the rule of ``SpikingLinear.reset_parameters``.
        factory: ``device`` and ``dtype``.
    """
    sizes = [in_features, *(whole("model.hidden", size, minimum=1) for size in hidden)]
    synapses = {"neuron": neuron, "solver": solver, **factory}
    output = objective.output_layer(sizes[-1], num_classes, **synapses)
    kind = SpikingLinear
    if mean_delay is not None:
        kind, synapses["mean_delay"] = DelayedSpikingLinear, mean_delay
        if isinstance(output, SpikingLinear):
            output = kind(sizes[-1], num_classes, **synapses)
    layers: list[nn.Module] = [*(kind(m, n, **synapses) for m, n in pairwise(sizes)), output]
    _initialise(layers, weight_mean, weight_std)
    return _augmented(layers, shift, dropout)


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
    shift: int = 0,
    dropout: float = 0.0,
    weight_mean: list[float] | None = None,
    weight_std: list[float] | None = None,
    **factory,
) -> nn.Sequential:
    """Spiking convolutions, then the output layer of the objective.

    Args:
        image: channels, height and width of the input.
        channels: of each convolution.
        kernel_size, stride: of all convolutions; they have no padding.
        shift, dropout, weight_mean, weight_std: as for ``fully_connected``.
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
    synapses = {"neuron": neuron, "solver": solver, **factory}
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if min(height, width) < kernel_size:
            raise ValueError(f"model.kernel_size={kernel_size} exceeds the {height} x {width} input of a convolution")
        layers.append(SpikingConv2d(inputs, outputs, kernel_size, stride, **synapses))
        height, width = ((size - kernel_size) // stride + 1 for size in (height, width))
    layers.append(objective.output_layer(sizes[-1] * height * width, num_classes, **synapses))
    _initialise(layers, weight_mean, weight_std)
    return _augmented(layers, shift, dropout)


def recurrent(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: LIF,
    solver: Solver,
    *,
    hidden: int,
    delay: float,
    recurrent_std: float,
    learn: list[str],
    weight_mean: list[float] | None = None,
    weight_std: list[float] | None = None,
    **factory,
) -> nn.Sequential:
    """A recurrent hidden layer, then the output layer of the objective.

    Args:
        hidden: neurons of the recurrent layer.
        delay, recurrent_std: as for ``SpikingRecurrent``.
        learn: which parameters of the hidden neurons to learn, as for ``LearnableLIF``; one number for each neuron.
        weight_mean, weight_std: of all but the recurrent weights, as for ``fully_connected``.
        factory: ``device`` and ``dtype``.
    """
    kind = LearnableLIF(whole("model.hidden", hidden, minimum=1), neuron, learn=learn, **factory) if learn else neuron
    layers: list[nn.Module] = [
        SpikingRecurrent(
            in_features, hidden, delay=delay, recurrent_std=recurrent_std, neuron=kind, solver=solver, **factory
        ),
        objective.output_layer(hidden, num_classes, neuron=neuron, solver=solver, **factory),
    ]
    _initialise(layers, weight_mean, weight_std)
    return nn.Sequential(*layers)


def _augmented(layers: list[nn.Module], shift: int, dropout: float) -> nn.Sequential:
    """The layers, with a shift of the input and dropout behind all but the last, where wanted."""
    modules: list[nn.Module] = [ShiftImage(shift)] if whole("model.shift", shift) else []
    for layer in layers:
        modules.append(layer)
        if dropout and layer is not layers[-1]:
            modules.append(SpikeDropout(dropout))
    return nn.Sequential(*modules)


def _initialise(layers: list[nn.Module], weight_mean: list[float] | None, weight_std: list[float] | None) -> None:
    """Draw the weights from the given normal distributions, if any."""
    if (weight_mean is None) != (weight_std is None):
        raise ValueError("model.weight_mean and model.weight_std must be given together, or both be null")
    if weight_mean is not None and weight_std is not None:
        for name, values in (("model.weight_mean", weight_mean), ("model.weight_std", weight_std)):
            if len(values) != len(layers):
                raise ValueError(f"{name} must have one number for each of the {len(layers)} layers, got {values}")
        for layer, mean, std in zip(layers, weight_mean, weight_std, strict=True):
            # type checkers do not know that these modules have a weight
            nn.init.normal_(layer.weight, mean, std)  # type: ignore[arg-type]
