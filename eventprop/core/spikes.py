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
from torch.utils.data._utils.collate import default_collate_fn_map

from .checks import positive, whole
from .tensorlike import FLOATS as FLOATS
from .tensorlike import TensorLike, check_float
from .tensorlike import traced as traced

INTEGERS = (torch.int16, torch.int32, torch.int64)


@dataclass(eq=False, repr=False)  # not frozen: Lightning converts data classes by copy and setattr
class Spikes(TensorLike):
    """A batch of spike trains in continuous time, differentiable in ``time``.

    It is indexed, split, moved, saved and collated as a tensor whose first dimension are the samples, and is a pytree.
    ``spikes[3]`` is one sample: its tensors have the shape [K], its methods return no dimension B, and ``sample[None]`` is
    a batch of it. Layers take batches.

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
    >>> spikes[0].time
    tensor([1., 3., 7.])
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
        self.shape = (self.num_neurons,) if self.shape is None else _check_shape(self.shape, self.num_neurons)

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
        spikes.time, spikes.index, spikes.num_neurons = time, index, math.prod(shape)
        spikes.slope, spikes.shape, spikes.height = slope, shape, height
        return spikes

    @classmethod
    def from_times(cls, times: Tensor) -> Spikes:
        """Build from spike times per neuron.

        Args:
            times: [B, N] or [B, N, R] times in ms in any order, +inf where there is no spike.
        """
        check_float("times", times)
        if times.dim() not in (2, 3):
            raise ValueError(f"times must have shape [B, N] or [B, N, R], got {list(times.shape)}")
        if not traced(times) and (torch.isnan(times).any() or torch.isneginf(times).any()):
            raise ValueError("times must be finite, or +inf where a neuron is silent; got NaN or -inf")
        time, order = times.flatten(1).sort(dim=1, stable=True)
        if not traced(time):
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
    def cat(cls, parts: Sequence[Spikes]) -> Spikes:
        """The samples of all ``parts``, batches or single samples of the same neurons, one after the other. Slopes stay where
        all parts have them."""
        if not parts:
            raise ValueError("parts must hold at least one spike train")
        kinds = {part._kind() for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"parts must be of one shape, height and grid, got {sorted(kinds)}")
        columns = max(part.time.shape[-1] for part in parts)

        def stack(rows: list[Tensor], padding: float) -> Tensor:
            padded = [F.pad(row, (0, columns - row.shape[-1]), value=padding) for row in rows]
            return torch.cat([torch.atleast_2d(row) for row in padded])

        slopes = [part.slope for part in parts if part.slope is not None]
        return parts[0]._similar(
            stack([part.time for part in parts], math.inf),
            stack([part.index for part in parts], -1),
            stack(slopes, math.inf) if len(slopes) == len(parts) else None,
        )

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

    def _neuron(self) -> Tensor:
        """[..., K] int64 the neuron of each spike; padding (-1) becomes the extra neuron N."""
        return self.index.long() % (self.num_neurons + 1)

    def _first(self, neuron: Tensor) -> Tensor:
        """[..., N + 1] where each neuron comes first in ``neuron`` [..., K]; K where it does not."""
        columns = neuron.shape[-1]
        rank = torch.arange(columns, device=neuron.device).expand_as(neuron)
        nowhere = neuron.new_full((*neuron.shape[:-1], self.num_neurons + 1), columns)
        return nowhere.scatter_reduce(-1, neuron, rank, "amin")

    def first_spike_time(self) -> Tensor:
        """[B, N] time of each neuron's first spike in ms; +inf, with gradient 0, where it is silent."""
        never = self.time.new_full((*self.time.shape[:-1], 1), math.inf)
        return torch.cat([self.time, never], dim=-1).gather(-1, self._first(self._neuron())[..., :-1])

    def count(self) -> Tensor:
        """[B, N] number of spikes of each neuron, int64."""
        return self.summed(torch.ones_like(self.index, dtype=torch.int64))

    def summed(self, values: Tensor) -> Tensor:
        """[B, N] sums of ``values`` [B, K], one for each spike, over the spikes of each neuron."""
        shape = (*self.time.shape[:-1], self.num_neurons + 1)
        return values.new_zeros(shape).scatter_add(-1, self._neuron(), values)[..., :-1]

    def to_times(self, k: int | None = None) -> Tensor:
        """[B, N, k] the first ``k`` spike times of each neuron in ms, padded with +inf; all of them if ``k`` is None."""
        if k is None:
            if traced(self.time):
                raise ValueError(
                    "k must be given in torch.compile and torch.func, where no one knows the largest count"
                )
            k = int(self.count().max()) if self.time.numel() else 0
        else:
            whole("k", k, minimum=1)
        silent = self.num_neurons
        neuron, order = self._neuron().sort(dim=-1, stable=True)
        rank = torch.arange(neuron.shape[-1], device=self.device) - self._first(neuron).gather(-1, neuron)
        kept = (neuron < silent) & (rank < k)
        target = torch.where(kept, neuron * k + rank, silent * k)  # one column more, for what is not kept
        times = self.time.new_full((*self.time.shape[:-1], silent * k + 1), math.inf)
        return times.scatter(-1, target, self.time.gather(-1, order))[..., :-1].unflatten(-1, (silent, k))

    def to_raster(self, dt: float, t_end: float) -> Tensor:
        """[T, B, N] spike counts in the bins [i dt, (i + 1) dt), the last of which includes ``t_end``.

        Raises:
            ValueError: if ``t_end`` is not a whole number of bins, or a spike lies outside [0, t_end].
        """
        dt, t_end = positive("dt", dt), positive("t_end", t_end)
        steps, width = whole_steps(t_end, dt), self.num_neurons + 1
        check_window(self, t_end)
        time = self.time.detach().masked_fill(self.index < 0, 0.0)
        place = step_of(time, dt).clamp(max=steps - 1) * width + self._neuron()
        raster = time.new_zeros((*time.shape[:-1], steps * width)).scatter_add(-1, place, torch.ones_like(time))
        return raster.unflatten(-1, (steps, width))[..., :-1].movedim(-2, 0).contiguous()

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
        time, order = time.sort(dim=-1, stable=True)
        slope = self.slope if slope is None else slope
        slope = None if slope is None else slope.gather(-1, order)
        shape = self._shape if shape is None else shape
        return self._like(time, index.gather(-1, order), slope, shape, height * self.height)._trimmed()

    def equal(self, other: object) -> bool:
        """Whether ``other`` has the same spikes, of the same dtype and kind; padding and slopes do not count."""
        if not isinstance(other, Spikes) or type(other) is not type(self) or self._kind() != other._kind():
            return False
        one, two = self._trimmed(), other._trimmed()
        return (
            self.dtype == other.dtype
            and torch.equal(one.time, two.time)
            and torch.equal(one.index.long(), two.index.long())
        )

    def scaled(self, weight: Tensor) -> Tensor:
        """What ``weight`` is to spikes of this height."""
        return weight if self.height == 1.0 else self.height * weight

    def _similar(self, time: Tensor, index: Tensor, slope: Tensor | None) -> Self:
        """Other spikes of the same neurons."""
        return self._like(time, index, slope, self._shape, self.height)

    def _like(self, time: Tensor, index: Tensor, slope: Tensor | None, shape: tuple[int, ...], height: float) -> Self:
        """Spikes of the same kind."""
        return self._trusted(time, index, shape, slope, height)

    def __repr__(self) -> str:
        if not isinstance(self.time, Tensor):  # taken apart as a pytree, and filled with something else
            return f"{type(self).__name__}(time={self.time!r}, index={self.index!r})"
        batch = f"batch_size={len(self)}, " if self.time.dim() == 2 else ""
        spikes = "?" if traced(self.index) else int((self.index >= 0).sum())
        return (
            f"{type(self).__name__}({batch}num_neurons={self.num_neurons}, spikes={spikes}, dtype={self.dtype}, "
            f"device='{self.device}')"
        )


def collate(samples: Sequence[Spikes], *, collate_fn_map: object = None) -> Spikes:
    """Make a batch of ``samples``; ``torch.utils.data.default_collate`` calls this."""
    return Spikes.cat(samples)


default_collate_fn_map[Spikes] = collate


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
    if traced(spikes.time):
        return
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


def _check(time: Tensor, index: Tensor, num_neurons: int) -> None:
    check_float("time", time)
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
    if traced(time, index):
        return
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
