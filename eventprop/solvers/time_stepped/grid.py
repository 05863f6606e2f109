"""The grid: its steps.

Shapes: B samples, M or N neurons, K spikes in the longest row, T steps, A of them with arrivals.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eventprop.core.neuron import LIF, decay, euler_step
from eventprop.core.spikes import whole_steps

SCHEMES = ("exponential", "euler")


class Grid(NamedTuple):
    """``steps`` steps of ``dt`` ms, and the coefficients with which one neuron type advances by one step."""

    steps: int
    dt: float
    a: float
    s: float
    phi: float
    neuron: LIF
    exact: bool  # spikes lie within steps; otherwise (euler) on grid points

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, neuron: LIF, t_end: float, dt: float, scheme: str) -> Grid:
        exact = scheme == "exponential"
        check_step(dt, min(neuron.tau_mem, neuron.tau_syn), scheme)
        if exact:
            step = decay(torch.tensor(dt, dtype=torch.float64), neuron.tau_mem, neuron.tau_syn)
            a, s, phi = (x.item() for x in step)
        else:
            a, s, phi = euler_step(dt, neuron.tau_mem, neuron.tau_syn)
        return cls(whole_steps(t_end, dt), dt, a, s, phi, neuron, exact)


class Steps(NamedTuple):
    """A ``Grid`` without its neurons, for those that differ."""

    steps: int
    dt: float
    exact: bool

    @classmethod
    def of(cls, neurons: Tensor, t_end: float, dt: float, scheme: str) -> Steps:
        """For ``neurons`` [N, 5], the table of ``LearnableLIF``."""
        check_step(dt, float(neurons.detach()[:, :2].min()), scheme)
        return cls(whole_steps(t_end, dt), dt, scheme == "exponential")


class OnGrid(Protocol):
    """What the functions of the grid ask of a solver."""

    @property
    def t_end(self) -> float: ...
    @property
    def dt(self) -> float: ...
    @property
    def scheme(self) -> str: ...
    @property
    def grazing(self) -> str: ...
    @property
    def min_slope(self) -> float: ...
    def backend_for(self, device: torch.device) -> str: ...
    def effective_slope(self, slope: Tensor) -> Tensor: ...


def check_step(dt: float, fastest: float, scheme: str) -> None:
    """Raise unless a step of ``dt`` is short enough for the ``fastest`` time constant of a layer."""
    # beyond 50 time constants the state that a step began with is lost to rounding; euler oscillates beyond one
    limit = (50.0 if scheme == "exponential" else 1.0) * fastest
    if dt > limit:
        raise ValueError(
            f"dt must be at most {limit} for a time constant of {fastest} ms and scheme {scheme!r}, got {dt}; choose a "
            f"smaller dt"
        )


def dense(steps: Tensor, values: Tensor, total: int) -> Tensor:
    """[2, T, ...] the ``values`` [2, A, ...] of the ``steps`` [A] in their places among all, 0 elsewhere."""
    # a step of -1, which stands for none, becomes one step more
    zeros = values.new_zeros((2, total + 1, *values.shape[2:]))
    return zeros.index_add(1, steps % (total + 1), values)[:, :-1]
