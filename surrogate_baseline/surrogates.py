"""Surrogate derivatives: what stands in the place of the derivative of the step function that a spike is.

Each is a function of x, the distance of the potential from the threshold in units of the threshold's own scale. Any other
function of a tensor serves as well: pass it to a neuron as ``surrogate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eventprop.checks import positive

Surrogate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Slope:
    """A surrogate derivative with one parameter, ``slope`` > 0: the larger, the narrower and the higher."""

    slope: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", positive("slope", self.slope))


@dataclass(frozen=True)
class Arctan(_Slope):
    """g(x) = (k/2) / (1 + (pi k x / 2)^2), the derivative of arctan(pi k x / 2)/pi + 1/2 (Fang et al. 2021, ICCV)."""

    slope: float = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * self.slope / (1.0 + (0.5 * math.pi * self.slope * x).square())


@dataclass(frozen=True)
class Sigmoid(_Slope):
    """g(x) = k sigma(k x) (1 - sigma(k x)), the derivative of the logistic function (Bengio et al. 2013, arXiv 1308.3432;
    Zenke & Vogels 2021)."""

    slope: float = 4.0

    def __call__(self, x: Tensor) -> Tensor:
        sigma = torch.sigmoid(self.slope * x)
        return self.slope * sigma * (1.0 - sigma)


@dataclass(frozen=True)
class FastSigmoid(_Slope):
    """g(x) = 1 / (1 + k |x|)^2: SuperSpike (Zenke & Ganguli 2018, Neural Computation 30:1514)."""

    slope: float = 25.0

    def __call__(self, x: Tensor) -> Tensor:
        return (1.0 + self.slope * x.abs()).square().reciprocal()


@dataclass(frozen=True)
class PiecewiseQuadratic(_Slope):
    """g(x) = k max(0, 1 - k |x|), the derivative of a piecewise quadratic step from 0 to 1 (Esser et al. 2016, PNAS
    113:11441)."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.slope * (1.0 - self.slope * x.abs()).clamp(min=0.0)


@dataclass(frozen=True)
class Triangular(_Slope):
    """g(x) = k max(0, 1 - |x|): a triangle of fixed width and height k (Bellec et al. 2018, NeurIPS, who use k = 0.3)."""

    slope: float = 0.3

    def __call__(self, x: Tensor) -> Tensor:
        return self.slope * (1.0 - x.abs()).clamp(min=0.0)


@dataclass(frozen=True)
class Gaussian(_Slope):
    """g(x) = (k/sqrt(pi)) exp(-(k x)^2), the derivative of the error function (Yin, Corradi & Bohte 2021, Nature Machine
    Intelligence 3:905)."""

    slope: float = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.slope / math.sqrt(math.pi) * torch.exp(-(self.slope * x).square())


SURROGATES: dict[str, type] = {
    "arctan": Arctan,
    "sigmoid": Sigmoid,
    "fast_sigmoid": FastSigmoid,
    "piecewise_quadratic": PiecewiseQuadratic,
    "triangular": Triangular,
    "gaussian": Gaussian,
}
