"""Spike trains on a grid, seen as what they do at the end of each step.

Shapes: B samples, N neurons, K spikes in the longest row, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from eventprop.core.checks import choice, positive
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes, check_window, whole_steps

from .grid import SCHEMES, Grid, dense
from .reference import effects


@dataclass(eq=False, repr=False)
class GridSpikes(Spikes):
    """A batch of spike trains on a time grid: spikes that also know their grid and the shape of their layer.

    What other layers see of it is ``channels``, two numbers per step and neuron: the postsynaptic potential and current
    (psp, psc) that the spikes of a step have raised, through a weight of 1, by the end of that step, eq. (11). They are
    smooth functions of the spike *times*, and so a cotangent of ``channels`` is not a gradient with respect to "whether
    there is a spike": it is dL/dpsp and dL/dpsc, which the chain rule turns into dL/dt of each spike.

    Args:
        time, index, num_neurons, slope, shape, height: as for ``Spikes``.
        dt: length of a step in ms, > 0.
        t_end: end of the window in ms, a whole number of steps; no spike may lie outside [0, t_end].

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.

    >>> import torch
    >>> train = GridSpikes.from_spikes(Spikes.from_times(torch.tensor([[0.0, 3.0]])), dt=1.0, t_end=4.0)
    >>> train.channels(LIF(tau_mem=20.0, tau_syn=5.0)).shape
    torch.Size([2, 4, 1, 2])
    """

    dt: float = 1.0
    t_end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dt", "t_end"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        whole_steps(self.t_end, self.dt)
        check_window(self, self.t_end)

    @classmethod
    def from_spikes(cls, spikes: Spikes, dt: float, t_end: float) -> GridSpikes:
        """Put spikes on a grid. Their times stay as they are: a spike may lie anywhere in its step."""
        return cls(spikes.time, spikes.index, spikes.num_neurons, spikes.slope, spikes.shape, spikes.height, dt, t_end)

    def to_spikes(self) -> Spikes:
        """The same spikes without their grid."""
        return Spikes._trusted(self.time, self.index, self._shape, self.slope, self.height)

    def channels(self, neuron: LIF, scheme: str = "exponential") -> Tensor:
        """[2, T, B, *shape] the effect (psp, psc) on ``neuron`` at the end of each step; differentiable in ``time``."""
        choice("scheme", scheme, SCHEMES)
        grid = Grid.of(neuron, self.t_end, self.dt, scheme)
        steps, values = effects(self.time, self.index.long(), self.num_neurons, grid)
        return self.height * dense(steps, values, grid.steps).unflatten(3, self._shape)

    def _kind(self) -> tuple:
        return *super()._kind(), self.dt, self.t_end

    def _like(self, time: Tensor, index: Tensor, slope: Tensor | None, shape: tuple[int, ...], height: float) -> Self:
        return self._on_grid(time, index, shape, slope, self.dt, self.t_end, height)

    @classmethod
    def _on_grid(
        cls, time: Tensor, index: Tensor, shape: tuple[int, ...], slope: Tensor | None, dt: float, t_end: float,
        height: float = 1.0,
    ) -> Self:  # fmt: skip
        """Build without checks, for rows that this package made itself."""
        train = cls._trusted(time, index, shape, slope, height)
        train.dt, train.t_end = dt, t_end
        return train
