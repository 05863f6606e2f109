"""Surrogate derivatives: what stands in the place of the derivative of the step function that a spike is.

Each is a function of x, the distance of the potential from the threshold, and has one parameter, the slope k. Any other
function of a tensor serves as well: pass it to a neuron as ``surrogate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eventprop.core.checks import positive

Surrogate = Callable[[Tensor], Tensor]

# The formulas take floats or tensors; numba compiles these same functions for the loop over time on the CPU.


def arctan(x, k):
    return 0.5 * k / (1.0 + (0.5 * math.pi * k * x) * (0.5 * math.pi * k * x))


def sigmoid(x, k):
    decay = torch.exp(-k * abs(x))  # sigma (1 - sigma), written so that it never overflows
    return k * decay / ((1.0 + decay) * (1.0 + decay))


def fast_sigmoid(x, k):
    return 1.0 / ((1.0 + k * abs(x)) * (1.0 + k * abs(x)))


def piecewise_quadratic(x, k):
    rest = 1.0 - k * abs(x)
    return k * torch.where(rest > 0.0, rest, 0.0)


def triangular(x, k):
    rest = 1.0 - abs(x)
    return k * torch.where(rest > 0.0, rest, 0.0)


def gaussian(x, k):
    return k / math.sqrt(math.pi) * torch.exp(-(k * x) * (k * x))


@dataclass(frozen=True)
class BuiltIn:
    """A surrogate derivative with one parameter, ``slope`` > 0: the larger, the narrower or the higher."""

    slope: float = 1.0
    formula: ClassVar[Callable]

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", positive("slope", self.slope))

    def __call__(self, x: Tensor) -> Tensor:
        return type(self).formula(x, self.slope)


@dataclass(frozen=True)
class Arctan(BuiltIn):
    """g(x) = (k/2) / (1 + (pi k x / 2)^2), the derivative of arctan(pi k x / 2)/pi + 1/2 (Fang et al. 2021, ICCV)."""

    slope: float = 2.0
    formula = staticmethod(arctan)


@dataclass(frozen=True)
class Sigmoid(BuiltIn):
    """g(x) = k sigma(k x) (1 - sigma(k x)), the derivative of the logistic function (Bengio et al. 2013, arXiv 1308.3432;
    Zenke & Vogels 2021)."""

    slope: float = 4.0
    formula = staticmethod(sigmoid)


@dataclass(frozen=True)
class FastSigmoid(BuiltIn):
    """g(x) = 1 / (1 + k |x|)^2: SuperSpike (Zenke & Ganguli 2018, Neural Computation 30:1514); with the factor k in some
    libraries."""

    slope: float = 25.0
    formula = staticmethod(fast_sigmoid)


@dataclass(frozen=True)
class PiecewiseQuadratic(BuiltIn):
    """g(x) = k max(0, 1 - k |x|), the derivative of a piecewise quadratic step from 0 to 1 (Esser et al. 2016, PNAS
    113:11441)."""

    formula = staticmethod(piecewise_quadratic)


@dataclass(frozen=True)
class Triangular(BuiltIn):
    """g(x) = k max(0, 1 - |x|): a triangle of fixed width and height k (Bellec et al. 2018, NeurIPS, who use k = 0.3)."""

    slope: float = 0.3
    formula = staticmethod(triangular)


@dataclass(frozen=True)
class Gaussian(BuiltIn):
    """g(x) = (k/sqrt(pi)) exp(-(k x)^2), the derivative of the error function (Yin, Corradi & Bohte 2021, Nature Machine
    Intelligence 3:905)."""

    slope: float = 2.0
    formula = staticmethod(gaussian)


ARCTAN = Arctan()


def check_surrogate(surrogate: object) -> None:
    """Raise unless ``surrogate`` can be one."""
    if isinstance(surrogate, type) or not callable(surrogate):
        raise TypeError(f"surrogate must be a function of a tensor, such as Arctan(2.0); got {surrogate!r}")


def derivative(surrogate: Surrogate, x: Tensor) -> Tensor:
    """A new tensor of the values of ``surrogate``, which may be a user's, with the dtype of ``x``."""
    values = torch.as_tensor(surrogate(x))
    if values.shape not in (x.shape, ()):
        raise ValueError(f"surrogate must return the shape of its argument {list(x.shape)}, got {list(values.shape)}")
    return torch.empty_like(x).copy_(values)


SURROGATES: dict[str, type[BuiltIn]] = {
    "arctan": Arctan,
    "sigmoid": Sigmoid,
    "fast_sigmoid": FastSigmoid,
    "piecewise_quadratic": PiecewiseQuadratic,
    "triangular": Triangular,
    "gaussian": Gaussian,
}
