"""Checks of arguments: each raises an error that names the argument, what came and what is allowed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from .tensorlike import traced


def real(name: str, value: object, kind: str = "real") -> float:
    """Return ``value`` as a float if it is a real number, of Python or of NumPy."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a {kind} number, got {value!r} of type {type(value).__name__}")
    return float(value)


def finite(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number."""
    number = real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def positive(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a positive finite number."""
    number = real(name, value, "positive")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def not_negative(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number of at least 0."""
    number = real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    return number


def fraction(name: str, value: object) -> float:
    """Return ``value`` as a float if it lies in [0, 1)."""
    number = real(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return number


def whole(name: str, value: object, minimum: int = 0) -> int:
    """Return ``value`` as an int if it is a whole number, of Python or of NumPy, of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value}")
    return int(value)


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def bounds(tensor: Tensor) -> tuple[float, float]:
    """The lowest and the highest entry of ``tensor``: NaN if one is NaN, and (inf, -inf) if there is none, or if values cannot
    be looked at."""
    if traced(tensor) or not tensor.numel():
        return math.inf, -math.inf
    low, high = tensor.detach().aminmax()
    return float(low), float(high)


def is_finite(tensor: Tensor) -> bool:
    """Whether all entries are finite; True where they cannot be looked at."""
    low, high = bounds(tensor)
    return -math.inf < low and high < math.inf


def finite_entries(name: str, tensor: Tensor, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise if an entry of a parameter or a buffer is not finite or not in [low, high], where entries can be looked at."""
    lowest, highest = bounds(tensor)
    if low <= lowest and highest <= high and -math.inf < lowest and highest < math.inf:
        return
    bad = tensor.detach()[~(tensor.isfinite() & (tensor >= low) & (tensor <= high))]
    within = "" if -low == high == math.inf else f" and lie in [{low:.6g}, {high:.6g}]"
    raise ValueError(
        f"{name} must be finite{within}, but {len(bad)} of its {tensor.numel()} entries are not, such as {float(bad[0]):.6g}; "
        f"load or set others, and where training made them so, lower the learning rate or try the solver's grazing='clamp'"
    )


def finite_exponential(name: str, logarithm: Tensor) -> None:
    """Raise unless all entries of a parameter are logarithms of positive finite numbers of its dtype."""
    info = torch.finfo(logarithm.dtype)
    finite_entries(
        name, logarithm, math.log(info.tiny), math.log(info.max / 2)
    )  # half: exp of the logarithm is rounded


def check_parameters(module: nn.Module) -> None:
    """Raise if a parameter or a buffer of the module is not finite: for a module whose output is not.

    To look at all weights in every pass would cost time. Instead, solvers see for nothing that a potential is not finite, and
    only then the module looks for the reason. So weights that no spike meets may be NaN: they have no effect.
    """
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point():
            finite_entries(f"{type(module).__name__}.{name}", tensor)
