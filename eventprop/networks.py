"""Networks that the training command builds."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .checks import whole
from .event_driven import EventDriven
from .layers import LeakyReadout, SpikingLinear
from .losses import Objective
from .neuron import LIF


def fully_connected(
    in_features: int,
    num_classes: int,
    objective: Objective,
    neuron: LIF,
    solver: EventDriven,
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
    layers: list[SpikingLinear | LeakyReadout] = [SpikingLinear(m, n, **synapses) for m, n in pairwise(sizes)]
    layers.append(objective.output_layer(sizes[-1], num_classes, **synapses))
    if (weight_mean is None) != (weight_std is None):
        raise ValueError("model.weight_mean and model.weight_std must be given together, or both be null")
    if weight_mean is not None and weight_std is not None:
        for name, values in (("model.weight_mean", weight_mean), ("model.weight_std", weight_std)):
            if len(values) != len(layers):
                raise ValueError(f"{name} must have one number for each of the {len(layers)} layers, got {values}")
        for layer, mean, std in zip(layers, weight_mean, weight_std, strict=True):
            nn.init.normal_(layer.weight, mean, std)
    return nn.Sequential(*layers)
