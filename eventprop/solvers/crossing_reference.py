"""The search for the next threshold crossing between two events, in plain torch: the reference for ``crossing``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eventprop.core.autograd import elementwise_decay
from eventprop.core.neuron import flow, peak_time, slope


def next_crossing(
    v: Tensor, i: Tensor, horizon: Tensor, tau_mem: Tensor | float, tau_syn: Tensor | float, threshold: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The first dt in [0, horizon] with V(dt) = ``threshold``, of any sign, while rising (eq. 2), and where there is one;
    float64."""
    tau_mem, tau_syn, threshold = (
        torch.as_tensor(x, dtype=v.dtype, device=v.device) for x in (tau_mem, tau_syn, threshold)
    )
    v_end, _ = flow(v, i, *elementwise_decay(horizon, tau_mem, tau_syn))
    # I only falls, and a peak has V = I > 0
    may_cross = (v < threshold) & (horizon > 0.0) & ((i > threshold) | (threshold <= 0.0))
    may_peak = may_cross & (threshold > 0.0)  # V stays above 0 after a peak
    peak = peak_time(torch.where(may_peak, v, 0.0), torch.where(may_peak, i, 1.0), tau_mem, tau_syn)
    peaks = may_peak & (v_end < threshold) & (peak < horizon) & (i * torch.exp(-peak / tau_syn) >= threshold)
    crossing = peaks | (may_cross & (v_end >= threshold))
    on_threshold = (v >= threshold) & (i > v)  # only by rounding

    # bisection-guarded Newton, started from the left, where it climbs monotonically (V is concave while it rises); the error
    # that a short step of Newton's leaves goes with the square of the step
    short = 1e-14 * torch.minimum(tau_mem, tau_syn)
    low, high = torch.zeros_like(v), torch.where(peaks, peak, horizon)
    dt = low
    for _ in range(100):
        v_now, i_now = flow(v, i, *elementwise_decay(dt, tau_mem, tau_syn))
        below = v_now < threshold
        low, high = torch.where(below, dt, low), torch.where(below, high, dt)
        rise = slope(i_now, v_now, tau_mem)
        following = dt + (threshold - v_now) / torch.where(rise > 0.0, rise, math.inf)
        outside = (following < low) | (following > high) | (rise <= 0.0)
        following = torch.where(outside, 0.5 * (low + high), following)
        rounding = torch.where(outside, 4e-16 * following, short)  # two roundings
        moved = crossing & ((following - dt).abs() > rounding)
        dt = following
        if not moved.any():
            break
    return torch.where(on_threshold, 0.0, dt), crossing | on_threshold
