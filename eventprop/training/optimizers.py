"""Optimizers and learning-rate schedules: torch's, with checked settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

from eventprop.core.checks import positive


@dataclass(frozen=True)
class _Optimizer:
    lr: float = 5e-3
    decay: float | str = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        if isinstance(self.decay, str):
            if self.decay != "cosine":
                raise ValueError(f"decay must be 'cosine' or a factor per epoch, got {self.decay!r}")
        else:
            positive("decay", self.decay)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")

    def schedule(self, optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler:
        """The schedule of the learning rate, with one step per epoch."""
        if isinstance(self.decay, str):
            return CosineAnnealingLR(optimizer, epochs)
        return ExponentialLR(optimizer, self.decay)


@dataclass(frozen=True)
class Adam(_Optimizer):
    """Adam.

    Args:
        lr: initial learning rate.
        decay: factor of the learning rate after every epoch, or "cosine": half a cosine, down to 0 after the last.
        weight_decay: >= 0.
    """

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True)
class SGD(_Optimizer):
    """Stochastic gradient descent with momentum in [0, 1); ``lr``, ``decay`` and ``weight_decay`` as for ``Adam``."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, fused=True)
