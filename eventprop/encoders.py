"""Encoders: from images and sequences to spikes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eventprop.core.checks import fraction, positive, real
from eventprop.core.spikes import FLOATS, Spikes, traced


def latency_encode(images: Tensor, t_min: float = 0.0, t_max: float = 20.0, threshold: float = 1 / 255) -> Spikes:
    """Latency code: the brighter a pixel, the earlier its one spike.

    t = t_min + (1 - x)(t_max - t_min) for pixels x > threshold; darker pixels are silent. The defaults are those of
    Wunderlich & Pehle (2021) for MNIST.

    Args:
        images: [B, ...] values in [0, 1], or uint8 in 0..255; differentiable where floating. Pixels become neurons, of the
            same shape.
        t_min, t_max: times in ms of the brightest and of the darkest spike, t_min < t_max.
        threshold: pixels up to this value stay silent; in [0, 1).
    """
    values = unit_values(images)
    t_min, t_max = _ordered("t_min", t_min, "t_max", t_max)
    threshold = fraction("threshold", threshold)
    time = t_min + (1.0 - values) * (t_max - t_min)
    return Spikes.from_times(torch.where(values > threshold, time, math.inf)).reshape(*images.shape[1:])


def binary_latency_encode(images: Tensor, t_on: float = 10.0, t_off: float = 20.0, threshold: float = 0.5) -> Spikes:
    """Binarised latency code: every pixel spikes once, bright ones (> ``threshold``) at ``t_on``, others at ``t_off``.

    Args:
        images: [B, ...] values in [0, 1], or uint8 in 0..255. Pixels become neurons, of the same shape.
        t_on, t_off: times in ms, t_on < t_off.
        threshold: in [0, 1).
    """
    values = unit_values(images)
    t_on, t_off = _ordered("t_on", t_on, "t_off", t_off)
    threshold = fraction("threshold", threshold)
    times = torch.where(values > threshold, t_on, t_off).to(values.dtype)
    return Spikes.from_times(times).reshape(*images.shape[1:])


def unit_values(images: object) -> Tensor:
    """``images`` as [B, pixels] in [0, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dim() < 2:
        raise ValueError(f"images must have shape [B, ...], got {list(images.shape)}; add a batch dimension")
    if images.dtype == torch.uint8:
        return images.flatten(1).to(torch.get_default_dtype()) / 255
    if images.dtype not in FLOATS:
        raise TypeError(f"images must be float32, float64 or uint8, got {images.dtype}")
    if images.numel() and not traced(images) and not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        raise ValueError(
            f"images must lie in [0, 1] without NaN, got values from {low} to {high}; divide by their maximum"
        )
    return images.flatten(1)


def _ordered(first: str, t_first: float, last: str, t_last: float) -> tuple[float, float]:
    t_first, t_last = real(first, t_first), real(last, t_last)
    if not -math.inf < t_first < t_last < math.inf:
        raise ValueError(f"{first} must be finite and less than {last}, got {first}={t_first} and {last}={t_last}")
    return t_first, t_last


def sequence_encode(rows: Tensor, t_width: float = 10.0, t_step: float = 20.0) -> Spikes:
    """Latency code of values that are shown one row after the other, to the same neurons.

    Neuron c spikes at k ``t_step`` + (1 - x) ``t_width`` for the value x in row k, column c.

    Args:
        rows: [B, rows, N] values in [0, 1]; differentiable.
        t_width: in ms, > 0; the time that a row takes.
        t_step: in ms, at least ``t_width``; from one row to the next.
    """
    values = unit_values(rows)
    if rows.dim() != 3:
        raise ValueError(f"rows must have shape [B, rows, N], got {list(rows.shape)}")
    t_step, t_width = positive("t_step", t_step), positive("t_width", t_width)
    if t_step < t_width:
        raise ValueError(f"t_step must be at least t_width={t_width}, got {t_step}")
    begin = t_step * torch.arange(rows.shape[1], dtype=values.dtype, device=values.device)
    return Spikes.from_times((begin[:, None] + (1.0 - values.reshape(rows.shape)) * t_width).transpose(1, 2))
