"""What training may do about neurons that an exact gradient cannot reach.

A neuron that never fires has gradient zero, so it stays silent. The default leaves it alone; "bump" is the alternative.
(What to do about grazing spikes is an option of the solver, since it concerns the backward pass.)
"""

from __future__ import annotations

import torch
from torch import nn

from eventprop.layers.linear import SpikingLinear, SpikingModule

from .config import ConfigError
from .metrics import HiddenActivity


@torch.no_grad()
def bump_silent(activity: HiddenActivity, amount: float) -> int:
    """Raise all incoming weights of the neurons that were silent; return how many neurons that are.

    ``amount`` is in units of the weight with which one simultaneous spike of every input would just fire the neuron.
    """
    bumped = 0
    for layer, silent in zip(activity.layers, activity.silent(), strict=True):
        assert isinstance(layer, SpikingLinear)
        layer.weight[silent.to(layer.weight.device)] += amount * layer.neuron.minimum_weight / layer.in_features
        bumped += int(silent.sum())
    return bumped


def check_can_bump(silent: str, network: nn.Sequential) -> None:
    """Raise where neurons that share their weights would have to be bumped one by one."""
    hidden = [layer for layer in list(network)[:-1] if isinstance(layer, SpikingModule)]
    if silent == "bump" and not all(isinstance(layer, SpikingLinear) for layer in hidden):
        raise ConfigError("train.silent=bump needs hidden layers of kind SpikingLinear; use train.silent=none")
