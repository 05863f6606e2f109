"""How surrogate gradients relate to the exact gradient of the same computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes


@dataclass(frozen=True)
class Alignment:
    """One layer's gradient beside the exact one, both as vectors of all its parameters.

    Attributes:
        layer: its name.
        cosine: of the angle between the two; NaN if one of them is zero.
        relative_norm: the norm of the surrogate gradient over that of the exact one.
    """

    layer: str
    cosine: float
    relative_norm: float


def gradients(network: nn.Module, loss: Callable, batches: list[tuple[Spikes, Tensor]]) -> dict[str, Tensor]:
    """The gradient of the mean of ``loss(output, target)`` over all samples of ``batches``, by parameter."""
    named = dict(network.named_parameters())
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in named.items()}
    samples = sum(len(target) for _, target in batches)
    for spikes, target in batches:
        values = torch.autograd.grad(loss(network(spikes), target), list(named.values()))
        for name, value in zip(named, values, strict=True):
            total[name] += value * (len(target) / samples)
    return total


def align(surrogate: dict[str, Tensor], exact: dict[str, Tensor]) -> list[Alignment]:
    """Compare two results of ``gradients``, layer by layer."""
    rows = []
    for name, reference in exact.items():
        a, b = surrogate[name].flatten(), reference.flatten()
        rows.append(Alignment(name, float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm())))
    return rows
