"""Which arrivals each position of a convolution receives, and the order of what the positions emit."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.window import Window

from ...compilation.jit import arrays, inlined, jit, threads


def unfold(time: Tensor, index: Tensor, window: Window) -> tuple[Tensor, ...]:
    """[B P, L] times of the arrivals ``time``, ``index`` [B, K] that each position sees, the synapses through which it does,
    and the columns of the arrivals; padded with +inf and -1."""
    height, width = window.out
    geometry = (*window.image, *window.kernel_size, *window.stride, *window.padding, height, width)
    arrivals, neuron = arrays(time, index)
    counts = np.zeros((len(arrivals), height * width), np.int64)
    with threads():
        count_batch(neuron, counts, *geometry)
        shape = (*counts.shape, int(counts.max(initial=0)))
        at, synapse, source = np.empty(shape, arrivals.dtype), np.empty(shape, np.int64), np.empty(shape, np.int64)
        unfold_batch(arrivals, neuron, counts, at, synapse, source, *geometry)
    return tuple(torch.from_numpy(x).flatten(0, 1) for x in (at, synapse, source))


def fold(time: Tensor, index: Tensor, slope: Tensor, positions: int) -> tuple[Tensor, ...]:
    """[B, S] times of the spikes ``time``, ``index``, ``slope`` [B P, s] of all positions of each sample, sorted, their
    neurons, their slopes, and their places in the row of all positions; padded with +inf and -1."""
    shape = (len(time) // positions, positions, time.shape[1])
    emitted, neuron, rise = (x.reshape(shape) for x in arrays(time, index, slope))
    longest = int((neuron >= 0).sum((1, 2)).max(initial=0))
    at, slopes = (np.empty((shape[0], longest), emitted.dtype) for _ in range(2))
    out, source = (np.empty((shape[0], longest), np.int64) for _ in range(2))
    with threads():
        fold_batch(emitted, neuron, rise, at, out, slopes, source)
    return tuple(map(torch.from_numpy, (at, out, slopes, source)))


def put_back(grad: Tensor, source: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, K] sums of the gradients ``grad`` of all that came from each of the K places of a sample, by ``source``."""
    result = torch.zeros(shape, dtype=grad.dtype)
    rows = (shape[0], source.numel() // max(shape[0], 1))
    with threads():
        put_back_batch(*arrays(grad.reshape(rows), source.reshape(rows)), *arrays(result))
    return result


@inlined
def reach(x, kernel, stride, padding, out):
    """The first output coordinate whose field holds the input coordinate ``x``, and the one after the last."""
    first = max(0, (x + padding - kernel) // stride + 1)
    return first, min(out, (x + padding) // stride + 1)


@jit(parallel=True)
def count_batch(
    index, counts, image_h, image_w, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, out_h, out_w
):  # fmt: skip
    for b in numba.prange(len(index)):
        for m in index[b]:
            if m < 0:
                break
            y, x = m // image_w % image_h, m % image_w
            top, bottom = reach(y, kernel_h, stride_h, padding_h, out_h)
            left, right = reach(x, kernel_w, stride_w, padding_w, out_w)
            for row in range(top, bottom):
                for column in range(left, right):
                    counts[b, row * out_w + column] += 1


@jit(parallel=True)
def unfold_batch(
    time, index, counts, at, synapse, source,
    image_h, image_w, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, out_h, out_w,
):  # fmt: skip
    for b in numba.prange(len(index)):
        filled = np.zeros(out_h * out_w, np.int64)
        for e in range(len(index[b])):
            m = index[b, e]
            if m < 0:
                break
            channel, y, x = m // (image_h * image_w), m // image_w % image_h, m % image_w
            top, bottom = reach(y, kernel_h, stride_h, padding_h, out_h)
            left, right = reach(x, kernel_w, stride_w, padding_w, out_w)
            for row in range(top, bottom):
                for column in range(left, right):
                    position = row * out_w + column
                    k_y, k_x = y + padding_h - row * stride_h, x + padding_w - column * stride_w
                    place = filled[position]
                    at[b, position, place], source[b, position, place] = time[b, e], e
                    synapse[b, position, place] = (channel * kernel_h + k_y) * kernel_w + k_x
                    filled[position] += 1
        for position in range(out_h * out_w):
            n = counts[b, position]
            at[b, position, n:], synapse[b, position, n:], source[b, position, n:] = np.inf, -1, -1


@jit(parallel=True)
def fold_batch(time, index, slope, at, neuron, slopes, source):
    positions, spikes = time.shape[1:]
    for b in numba.prange(len(time)):
        place, moment = np.empty(source.shape[1], np.int64), np.empty(source.shape[1])
        found = 0
        for position in range(positions):
            for k in range(spikes):
                if index[b, position, k] < 0:
                    break
                place[found], moment[found] = position * spikes + k, time[b, position, k]
                found += 1
        order = np.argsort(moment[:found], kind="mergesort")
        for k in range(found):
            position, n = divmod(place[order[k]], spikes)
            at[b, k], slopes[b, k] = time[b, position, n], slope[b, position, n]
            neuron[b, k], source[b, k] = index[b, position, n] * positions + position, place[order[k]]
        at[b, found:], neuron[b, found:], slopes[b, found:], source[b, found:] = np.inf, -1, np.inf, -1


@jit(parallel=True)
def put_back_batch(grad, source, result):
    for b in numba.prange(len(result)):
        for k in range(source.shape[1]):
            if source[b, k] >= 0:
                result[b, source[b, k]] += grad[b, k]
