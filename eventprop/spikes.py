"""Spike trains: the type that layers map to one another, and its conversions.

Shapes: B samples, N neurons, K spikes in the longest row, T bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import positive, whole

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Spikes:
    """A batch of spike trains in continuous time, differentiable in ``time``.

    Args:
        time: [B, K] spike times in ms, each row ascending and padded with +inf; float32 or float64.
        index: [B, K] the neuron of each spike, padded with -1; int16, int32 or int64.
        num_neurons: how many neurons there are, silent ones included.
        slope: [B, K] dV/dt at each spike in 1/ms, for spikes that a neuron emitted; None for encoded data. Small slopes
            mark grazing crossings, whose gradient is large (eq. 9 divides by the slope).
        shape: of the layer or image, e.g. (channels, height, width), whose product is ``num_neurons``; flat if None.
        height: of every spike; the weights that it meets are multiplied by it.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.

    >>> spikes = Spikes(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[1, 0, 1]]), num_neurons=3)
    >>> spikes.first_spike_time()
    tensor([[3., 1., inf]])
    >>> spikes.count()
    tensor([[1, 2, 0]])
    """

    time: Tensor
    index: Tensor
    num_neurons: int
    slope: Tensor | None = None
    shape: tuple[int, ...] | None = None
    height: float = 1.0

    def __post_init__(self) -> None:
        _check(self.time, self.index, self.num_neurons)
        positive("height", self.height)
        if self.shape is None:
            object.__setattr__(self, "shape", (self.num_neurons,))
        else:
            object.__setattr__(self, "shape", _check_shape(self.shape, self.num_neurons))

    @classmethod
    def _trusted(
        cls,
        time: Tensor,
        index: Tensor,
        shape: tuple[int, ...],
        slope: Tensor | None = None,
        height: float = 1.0,
    ) -> Self:
        """Build without checks, for rows that this package made itself."""
        spikes = object.__new__(cls)
        fields = (time, index, math.prod(shape), slope, shape, height)
        for name, value in zip(("time", "index", "num_neurons", "slope", "shape", "height"), fields, strict=True):
            object.__setattr__(spikes, name, value)
        return spikes

    @classmethod
    def from_times(cls, times: Tensor) -> Spikes:
        """Build from spike times per neuron.

        Args:
            times: [B, N] or [B, N, R] times in ms in any order, +inf where there is no spike.
        """
        _check_float("times", times)
        if times.dim() not in (2, 3):
            raise ValueError(f"times must have shape [B, N] or [B, N, R], got {list(times.shape)}")
        if torch.isnan(times).any() or torch.isneginf(times).any():
            raise ValueError("times must be finite, or +inf where a neuron is silent; got NaN or -inf")
        time, order = times.flatten(1).sort(dim=1, stable=True)
        columns = int(torch.isfinite(time.amin(0)).sum()) if time.numel() else 0
        time, order = time[:, :columns].contiguous(), order[:, :columns]
        index = order // times.shape[2] if times.dim() == 3 else order
        return cls._trusted(time, index.masked_fill(torch.isinf(time), -1), (times.shape[1],))

    @classmethod
    def from_raster(cls, raster: Tensor, dt: float) -> Spikes:
        """Build from spike counts per bin; a spike in bin i is placed at the start of the bin, i * dt.

        Args:
            raster: [T, B, N] non-negative whole numbers, of any dtype.
            dt: width of a bin in ms, > 0.
        """
        dt = positive("dt", dt)
        if raster.dim() != 3:
            raise ValueError(f"raster must have shape [T, B, N], got {list(raster.shape)}")
        counts = raster.to(torch.int64)
        if (counts < 0).any() or (counts != raster).any():
            raise ValueError("raster must hold whole numbers >= 0 (spike counts per bin); round or clip it first")
        dtype = raster.dtype if raster.dtype in FLOATS else torch.get_default_dtype()
        sample, step, neuron = counts.transpose(0, 1).nonzero(as_tuple=True)
        repeats = counts[step, sample, neuron]
        sample, step, neuron = (x.repeat_interleave(repeats) for x in (sample, step, neuron))
        batch_size, num_neurons = raster.shape[1:]
        time = padded_rows(step.to(dtype) * dt, sample, batch_size, math.inf)
        return cls._trusted(time, padded_rows(neuron, sample, batch_size, -1), (num_neurons,))

    @classmethod
    def cat(cls, parts: list[Spikes]) -> Spikes:
        """The samples of all ``parts``, which have the same neurons, one after the other."""
        columns = max(part.time.shape[1] for part in parts)
        kinds = {part._kind() for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"parts must be of one shape, height and grid, got {sorted(kinds)}")

        def stack(rows: list[Tensor], padding: float) -> Tensor:
            return torch.cat([F.pad(row, (0, columns - row.shape[1]), value=padding) for row in rows])

        time = stack([part.time for part in parts], math.inf)
        return parts[0]._similar(time, stack([part.index for part in parts], -1), None)

    def reshape(self, *shape: int) -> Self:
        """The same spikes of neurons with another shape, e.g. ``reshape(1, 28, 28)``."""
        _check_shape(shape, self.num_neurons)
        return self._like(self.time, self.index, self.slope, shape, self.height)

    def _kind(self) -> tuple:
        """What spike trains must have in common to be samples of one batch."""
        return self.shape, self.height

    @property
    def _shape(self) -> tuple[int, ...]:
        assert self.shape is not None  # None stands only for the argument that is left out
        return self.shape

    @property
    def batch_size(self) -> int:
        return self.time.shape[0]

    @property
    def device(self) -> torch.device:
        return self.time.device

    @property
    def dtype(self) -> torch.dtype:
        return self.time.dtype

    def first_spike_time(self) -> Tensor:
        """[B, N] time of each neuron's first spike in ms; +inf, with gradient 0, where it is silent."""
        rows, columns = self.time.shape
        neuron = self.index.long() % (self.num_neurons + 1)  # padding (-1) becomes the extra neuron N
        position = torch.full((rows, self.num_neurons + 1), columns, device=self.device)
        rank = torch.arange(columns, device=self.device).expand(rows, columns)
        position = position.scatter_reduce(1, neuron, rank, "amin")[:, :-1]
        never = self.time.new_full((rows, 1), math.inf)
        return torch.cat([self.time, never], dim=1).gather(1, position)

    def count(self) -> Tensor:
        """[B, N] number of spikes of each neuron, int64."""
        return self.summed(torch.ones_like(self.index, dtype=torch.int64))

    def summed(self, values: Tensor) -> Tensor:
        """[B, N] sums of ``values`` [B, K], one for each spike, over the spikes of each neuron."""
        neuron = self.index.long() % (self.num_neurons + 1)  # padding (-1) becomes the extra neuron N
        return values.new_zeros(self.batch_size, self.num_neurons + 1).scatter_add(1, neuron, values)[:, :-1]

    def to_times(self, k: int | None = None) -> Tensor:
        """[B, N, k] the first ``k`` spike times of each neuron in ms, padded with +inf; all of them if ``k`` is None."""
        if k is None:
            k = int(self.count().max()) if self.time.numel() else 0
        else:
            whole("k", k, minimum=1)
        rows, silent = self.batch_size, self.num_neurons
        neuron, order = (self.index.long() % (silent + 1)).sort(dim=1, stable=True)
        first = torch.searchsorted(neuron, torch.arange(silent + 1, device=self.device).expand(rows, -1).contiguous())
        rank = torch.arange(neuron.shape[1], device=self.device) - first.gather(1, neuron)
        kept = (neuron < silent) & (rank < k)
        target = torch.where(kept, neuron * k + rank, silent * k)  # one column more, for what is not kept
        times = self.time.new_full((rows, silent * k + 1), math.inf).scatter(1, target, self.time.gather(1, order))
        return times[:, :-1].reshape(rows, silent, k)

    def to_raster(self, dt: float, t_end: float) -> Tensor:
        """[T, B, N] spike counts in the bins [i dt, (i + 1) dt), the last of which includes ``t_end``.

        Raises:
            ValueError: if ``t_end`` is not a whole number of bins, or a spike lies outside [0, t_end].
        """
        dt, t_end = positive("dt", dt), positive("t_end", t_end)
        steps = whole_steps(t_end, dt)
        check_window(self, t_end)
        sample, column = (self.index >= 0).nonzero(as_tuple=True)
        time = self.time.detach()[sample, column]
        step = step_of(time, dt).clamp(max=steps - 1)
        raster = time.new_zeros((steps, self.batch_size, self.num_neurons))
        where = (step, sample, self.index.long()[sample, column])
        return raster.index_put(where, torch.ones_like(time), accumulate=True)

    def select(self, rows: Tensor) -> Self:
        """The samples ``rows`` (int64 [b]), without the padding that only other samples need."""
        slope = None if self.slope is None else self.slope[rows]
        return self._similar(self.time[rows], self.index[rows], slope)._trimmed()

    def reordered(
        self,
        time: Tensor,
        index: Tensor,
        slope: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        height: float = 1.0,
    ) -> Self:
        """Spikes at other times ([B, K], in any order, +inf for padding) or of other index (-1 where time is +inf); of the same
        slope and a layer of the same shape, unless there are others, and ``height`` times as high. Sorts the rows and trims
        the padding."""
        time, order = time.sort(dim=1, stable=True)
        slope = self.slope if slope is None else slope
        slope = None if slope is None else slope.gather(1, order)
        shape = self._shape if shape is None else shape
        return self._like(time, index.gather(1, order), slope, shape, height * self.height)._trimmed()

    def to(self, *args, **kwargs) -> Self:
        """Move to a device or convert the times to a dtype, as ``Tensor.to``."""
        time = self.time.to(*args, **kwargs)
        _check_float("dtype", time)
        slope = None if self.slope is None else self.slope.to(time)
        return self._similar(time, self.index.to(time.device), slope)

    def scaled(self, weight: Tensor) -> Tensor:
        """What ``weight`` is to spikes of this height."""
        return weight if self.height == 1.0 else self.height * weight

    def detach(self) -> Self:
        """The same spikes, cut from the autograd graph."""
        return self._similar(self.time.detach(), self.index, self.slope)

    def _similar(self, time: Tensor, index: Tensor, slope: Tensor | None) -> Self:
        """Other spikes of the same neurons."""
        return self._like(time, index, slope, self._shape, self.height)

    def _like(self, time: Tensor, index: Tensor, slope: Tensor | None, shape: tuple[int, ...], height: float) -> Self:
        """Spikes of the same kind."""
        return self._trusted(time, index, shape, slope, height)

    def _trimmed(self) -> Self:
        columns = int((self.index.amax(0) >= 0).sum()) if self.index.numel() else 0
        slope = None if self.slope is None else self.slope[:, :columns]
        return self._similar(self.time[:, :columns], self.index[:, :columns], slope)

    def __repr__(self) -> str:
        spikes = int((self.index >= 0).sum())
        return (
            f"Spikes(batch_size={self.batch_size}, num_neurons={self.num_neurons}, spikes={spikes}, "
            f"dtype={self.dtype}, device='{self.device}')"
        )


def whole_steps(t_end: float, dt: float) -> int:
    """How many steps ``dt`` make ``t_end``.

    Raises:
        ValueError: if that is not a whole number.
    """
    steps = round(t_end / dt)
    if steps < 1 or not math.isclose(steps * dt, t_end, rel_tol=1e-9):  # rounding of t_end/dt is ~1e-16
        fits = (max(1, math.floor(t_end / dt)) * dt, math.ceil(t_end / dt) * dt)
        below, above = (round(fit, 9) for fit in fits)
        raise ValueError(f"t_end must be a whole number of steps dt={dt}: {below} or {above} would fit, got {t_end}")
    return steps


def check_window(spikes: Spikes, t_end: float) -> None:
    """Raise if a spike lies outside [0, t_end]."""
    outside = (spikes.index >= 0) & ((spikes.time < 0) | (spikes.time > t_end))
    if outside.any():
        raise ValueError(f"{int(outside.sum())} spikes lie outside [0, t_end={t_end}]; choose a larger t_end")


def step_of(time: Tensor, dt: float) -> Tensor:
    """The steps [i dt, (i + 1) dt) in which finite times lie, int64."""
    step = (time / dt).floor()
    step += ((step + 1) * dt <= time).to(time) - (step * dt > time).to(time)  # undo the rounding of time / dt
    return step.long()


def padded_rows(values: Tensor, sample: Tensor, batch_size: int, padding: float) -> Tensor:
    """[B, S] rows of the flat ``values``, one row for each sample; ``sample`` ascends and tells which."""
    counts = torch.bincount(sample, minlength=batch_size)
    column = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[sample]
    shape = (batch_size, int(counts.max()) if len(sample) else 0)
    return values.new_full(shape, padding).index_put((sample, column), values)


def _check_shape(shape: Sequence[int], num_neurons: int) -> tuple[int, ...]:
    shape = tuple(whole("shape", size) for size in shape)
    if math.prod(shape) != num_neurons:
        raise ValueError(f"shape must have num_neurons={num_neurons} entries in all, got {shape}")
    return shape


def _check_float(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {value.dtype}; convert with .float() or .double()")


def _check(time: Tensor, index: Tensor, num_neurons: int) -> None:
    _check_float("time", time)
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor, got {type(index).__name__}")
    if index.dtype not in INTEGERS:
        raise TypeError(f"index must be int16, int32 or int64, got {index.dtype}; convert with .long()")
    whole("num_neurons", num_neurons)
    if time.dim() != 2:
        raise ValueError(f"time must have shape [B, K], got {list(time.shape)}")
    if index.shape != time.shape:
        raise ValueError(f"index must have the shape of time {list(time.shape)}, got {list(index.shape)}")
    if index.device != time.device:
        raise ValueError(f"index must be on the device of time ({time.device}), got {index.device}")
    if index.numel() and (index.min() < -1 or index.max() >= num_neurons):
        raise ValueError(
            f"index must lie in [0, num_neurons={num_neurons}), or be -1 for padding, "
            f"got values from {int(index.min())} to {int(index.max())}"
        )
    if torch.isnan(time).any() or torch.isneginf(time).any():
        raise ValueError("time must be finite, or +inf for padding; got NaN or -inf")
    if (time[:, 1:] < time[:, :-1]).any():
        row = int((time[:, 1:] < time[:, :-1]).any(1).nonzero()[0])
        raise ValueError(f"time must ascend along each row, row {row} does not; Spikes.from_times sorts for you")
    if (torch.isinf(time) != (index == -1)).any():
        raise ValueError("time and index must agree on padding: time is +inf exactly where index is -1")
