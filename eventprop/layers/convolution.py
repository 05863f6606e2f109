"""Convolutions and poolings that map spike trains to spike trains.

Their input has the shape [channels, height, width] of a layer or an encoded image, or [height, width].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eventprop.core.checks import whole
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes
from eventprop.core.window import Pair, Window
from eventprop.solvers.problem import Convolution, Problem, check_arrivals
from eventprop.solvers.solver import Solver

from .linear import SpikingModule, _Solved, draw_weight


class SpikingConv2d(_Solved, SpikingModule):
    """Leaky integrate-and-fire neurons behind a convolution; with ``EventDriven``, a spike updates only what it reaches.

    Args:
        in_channels, out_channels: whole numbers >= 1.
        kernel_size, stride, padding: whole numbers, or pairs of them for height and width.
        solver: how to compute spikes and gradients.
        neuron: parameters of the neurons, ``LIF()`` by default.
        device, dtype: of the weight; float32 or float64.

    Attributes:
        weight: [out_channels, in_channels, height, width] Parameter.

    >>> from eventprop import EventDriven, latency_encode
    >>> layer = SpikingConv2d(1, 4, 5, stride=2, solver=EventDriven(t_end=40.0))
    >>> layer(latency_encode(torch.rand(2, 28, 28))).shape
    (4, 12, 12)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        *,
        solver: Solver,
        neuron: LIF | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(neuron, solver, dtype)
        self.in_channels = whole("in_channels", in_channels, minimum=1)
        self.out_channels = whole("out_channels", out_channels, minimum=1)
        self.kernel_size = _pair("kernel_size", kernel_size, minimum=1)
        self.stride, self.padding = _pair("stride", stride, minimum=1), _pair("padding", padding)
        shape = (out_channels, in_channels, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()
        solver.check(self.problem)

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does; the inputs of a neuron are those of its kernel."""
        draw_weight(self.weight, self.neuron.minimum_weight, self.weight[0].numel(), mean, std)

    @property
    def problem(self) -> Problem:
        return Problem(Convolution(self.weight, self.stride, self.padding), self.neuron)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, neuron={self.neuron}, solver={self.solver}"
        )


class _Pool2d(nn.Module):
    """Windows of ``kernel_size`` that lie side by side; rows and columns that fill no window are left out."""

    def __init__(self, kernel_size: int | Pair) -> None:
        super().__init__()
        self.kernel_size = _pair("kernel_size", kernel_size, minimum=1)

    def _pooled(self, spikes: Spikes) -> tuple[Window, Tensor]:
        """The windows, and the [B, K] neuron of the pooled layer that each spike goes to, or -1."""
        check_arrivals(spikes)
        window = Window.on(spikes, self.kernel_size, self.kernel_size)
        (height, width), (out_h, out_w), index = window.image, window.out, spikes.index.long()
        channel, y, x = index // (height * width), index // width % height, index % width
        row, column = y // self.kernel_size[0], x // self.kernel_size[1]
        inside = (index >= 0) & (row < out_h) & (column < out_w)
        return window, ((channel * out_h + row) * out_w + column).masked_fill(~inside, -1)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


class EarliestSpikePool2d(_Pool2d):
    """Of each window, let the spikes of that neuron pass that fires first: the maximum, where strong means early.

    Of neurons that fire first at the same time, it is the one that comes first in the spike train.

    Args:
        kernel_size: height and width of the windows, which do not overlap: a whole number >= 1, or two.
    """

    def forward(self, spikes: Spikes) -> Spikes:
        window, target = self._pooled(spikes)
        pooled = math.prod((window.channels, *window.out))
        rows, columns = target.shape
        place = target % (pooled + 1)  # padding, and spikes outside all windows, become one more window
        rank = torch.arange(columns, device=target.device).expand(rows, columns)
        first = torch.full((rows, pooled + 1), columns, device=target.device).scatter_reduce(1, place, rank, "amin")
        silent = spikes.index.new_full((rows, 1), -1)
        winner = torch.cat([spikes.index, silent], 1).gather(1, first).gather(1, place)
        lost = (target < 0) | (spikes.index != winner)
        return _moved(spikes, target.masked_fill(lost, -1), window)


class AveragePool2d(_Pool2d):
    """Let the spikes of all neurons of a window pass as spikes of one, each as high as its share of the window.

    Args:
        kernel_size: height and width of the windows, which do not overlap: a whole number >= 1, or two.
    """

    def forward(self, spikes: Spikes) -> Spikes:
        window, target = self._pooled(spikes)
        return _moved(spikes, target, window, 1.0 / math.prod(self.kernel_size))


def _moved(spikes: Spikes, index: Tensor, window: Window, height: float = 1.0) -> Spikes:
    """The spikes as those of the neurons ``index`` of the pooled layer; without those whose index is -1."""
    time = spikes.time.masked_fill(index < 0, math.inf)
    shape = (window.channels, *window.out)
    return spikes.reordered(time, index.to(spikes.index.dtype), shape=shape, height=height)


def _pair(name: str, value: int | Pair, minimum: int = 0) -> Pair:
    values = value if isinstance(value, tuple) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be a whole number or two, got {value!r}")
    return whole(name, values[0], minimum), whole(name, values[1], minimum)
