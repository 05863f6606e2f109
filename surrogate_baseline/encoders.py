"""Encoders of rate-coded networks: from images to what arrives in each of T steps, [T, B, inputs]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eventprop import latency_encode
from eventprop.core.checks import fraction, whole
from eventprop.encoders import unit_values
from eventprop.training.data import BatchEncoder


@dataclass(frozen=True)
class _Steps(BatchEncoder):
    """``steps``: T >= 1."""

    steps: int

    def __post_init__(self) -> None:
        whole("steps", self.steps, minimum=1)


@dataclass(frozen=True)
class Poisson(_Steps):
    """Rate code: in each step a pixel x in [0, 1] spikes with probability x, whatever it does in other steps."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        values = unit_values(images)
        lit = values > 0  # most pixels of most images are dark and need no random number
        chance = torch.rand((self.steps, int(lit.sum())), dtype=values.dtype, device=values.device, generator=generator)
        raster = values.new_zeros((self.steps, *values.shape))
        raster[:, lit] = (chance < values[lit]).to(values.dtype)
        return raster


@dataclass(frozen=True)
class Direct(_Steps):
    """The image itself, as a constant input in each of the steps; the steps share its memory."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        values = unit_values(images)
        return values.expand(self.steps, *values.shape)


@dataclass(frozen=True)
class Latency(_Steps):
    """Latency code: the brighter a pixel, the earlier the step of its one spike; pixels up to ``threshold`` are silent."""

    threshold: float = 1 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("threshold", self.threshold)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return latency_encode(images, 0.0, float(self.steps), self.threshold).to_raster(1.0, float(self.steps))
