"""Emitted spikes, from kernels in numba to a tape; ``emission_reference`` is the same in torch.

Shapes: B samples, N neurons, R rows that tasks write to, S spikes in the longest row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from .chunks import part_of
from .compilation.jit import inlined, jit, threads
from .tape import MAX_SPIKES_PER_SAMPLE, Tape, check_finite, check_spike_count


class Columns(NamedTuple):
    """A ``Tape``, or one row of it, as kernels take it."""

    time: np.ndarray
    neuron: np.ndarray
    slope: np.ndarray
    after: np.ndarray


# In the last call of as many tasks, samples and neurons, the spikes of the fullest row: a guess, that spares a second run.
_needed: dict[tuple[int, int, int], int] = {}


def recorded(
    simulate: Callable[[Columns, np.ndarray], tuple[np.ndarray, np.ndarray]], batch: int, neurons: int, dtype: np.dtype,
    tasks: int, numbers: int = 0,
) -> tuple[Tape, Tensor]:  # fmt: skip
    """Run ``simulate`` with columns to write to, with larger ones if the spikes do not fit, and pack what it has written.

    ``simulate`` returns for each sample how many spikes it has, and whether its potentials stayed finite. The samples of a
    task write to one row of the columns, one behind the other. What does not fit is not written; a ``simulate`` that cannot go
    on without it stops, having counted it. It also gets room for ``numbers`` to be kept of each spike, [B, S, numbers], which
    is for kernels with a task for each sample.
    """
    like = tasks, batch, neurons
    # four spikes per neuron in the first sample, one in others; more if the last call of the kind had more
    room = max(64 + (3 + -(-batch // max(tasks, 1))) * neurons, 5 * _needed.get(like, 0) // 4)
    bounds, _ = part_of(np.arange(tasks), tasks, batch)
    with threads():
        while True:
            out = _columns(tasks, room, dtype)
            kept = np.zeros((tasks, room, numbers))
            counts, finite = simulate(out, kept)
            check_finite(bool(finite.all()))
            largest = int(counts.max(initial=0))
            check_spike_count(largest)
            needed = int(np.add.reduceat(counts, bounds).max()) if tasks else 0
            if needed <= room:
                break
            room = max(needed, min(2 * room, MAX_SPIKES_PER_SAMPLE))  # doubled, since a sample may have stopped
        _needed[like] = needed
        packed = _columns(batch, largest, dtype)
        pack(counts, out, packed)
    return Tape(*map(torch.from_numpy, packed)), torch.from_numpy(kept[:, :largest].copy())


def _columns(rows: int, spikes: int, dtype: np.dtype) -> Columns:
    """Uninitialised."""
    shape = (rows, spikes)
    return Columns(np.empty(shape, dtype), np.empty(shape, np.int64), np.empty(shape, dtype), np.empty(shape, np.int64))


@inlined
def row_of(columns, row, first):
    """The part of a ``row`` that begins with the spike ``first``."""
    return Columns(
        columns.time[row, first:], columns.neuron[row, first:], columns.slope[row, first:], columns.after[row, first:]
    )


@inlined
def record(row, k, time, neuron, slope, after):
    """Write spike ``k`` of a sample, if it fits."""
    if k < len(row.time):
        row.time[k], row.neuron[k], row.slope[k], row.after[k] = time, neuron, slope, after


@jit
def sort_by_time(row, begin, end):
    """Sort the spikes [begin, end) of a row in place, unless they did not fit: by time, those of equal times by neuron, those
    of one neuron by ``after`` (Shell sort: few as they mostly are, it is an insertion sort)."""
    if end > len(row.time):
        return
    time, neuron, slope, after = row.time[begin:end], row.neuron[begin:end], row.slope[begin:end], row.after[begin:end]
    gap = 1
    while gap < len(time) // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for last in range(gap, len(time)):
            t, n, d, e = time[last], neuron[last], slope[last], after[last]
            k = last
            while k >= gap and (
                time[k - gap] > t
                or (time[k - gap] == t and (neuron[k - gap] > n or (neuron[k - gap] == n and after[k - gap] > e)))
            ):
                time[k], neuron[k], slope[k], after[k] = time[k - gap], neuron[k - gap], slope[k - gap], after[k - gap]
                k -= gap
            time[k], neuron[k], slope[k], after[k] = t, n, d, e
        gap //= 3


@jit(parallel=True)
def pack(counts, columns, packed):
    """Copy the ``counts`` spikes of each sample to a row of its own, and pad it."""
    batch, tasks = len(counts), len(columns.time)
    for task in numba.prange(tasks):
        first, stop = part_of(task, tasks, batch)
        place = 0
        for b in range(first, stop):
            copy_padded(row_of(columns, task, place), counts[b], row_of(packed, b, 0))
            place += counts[b]


@jit
def copy_padded(row, n, padded):
    """Not part of ``pack``: numba takes what a parallel loop itself writes to the fields of a tuple for dead code."""
    padded.time[:n], padded.time[n:] = row.time[:n], np.inf
    padded.neuron[:n], padded.neuron[n:] = row.neuron[:n], -1
    padded.slope[:n], padded.slope[n:] = row.slope[:n], np.inf
    padded.after[:n], padded.after[n:] = row.after[:n], -1
