"""The grid for neurons of all kinds: time constants and thresholds of their own, a constant current, a refractory period, and
synapses with delays of their own. In plain torch with gradients by autograd, so slower than the kernels for plain layers.

What ``reference`` says of a step holds here too. With a constant current b, V - b follows the flow of eq. (6). After a spike V
is held at 0 until its release. What each arrival does to each neuron is computed at once, so memory grows with arrivals times
neurons.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eventprop.core.autograd import differentiable_decay, elementwise_decay
from eventprop.core.neuron import arrival_offset, flow, peak_time, rewind, slope
from eventprop.core.spikes import step_of

from ..event_driven.reference import sorted_tape
from ..tape import Tape, check_finite, check_spike_count
from .reference import AFTER, BEFORE, BETWEEN, EDGE, KINDS, ROUNDING, with_kinds


def forward(
    time: Tensor, index: Tensor, weight: Tensor, neurons: Tensor, steps: int, dt: float,
    effective_slope: Callable[[Tensor], Tensor],
) -> Tape:  # fmt: skip
    """Emitted spikes of neurons at rest, differentiable, ``neurons`` [N, 5] with the columns of ``LearnableLIF.table``.

    They receive the spikes ``index`` [B, K] through ``weight`` [N, M], at ``time`` [B, K, N], or [B, K, 1] for all at once.
    """
    tau_mem, tau_syn, v_th, bias, refractory = neurons.double().unbind(1)
    threshold = v_th - bias  # of U = V - b
    psp, psc = _effects(time.double(), index, weight.double(), tau_mem, tau_syn, steps, dt)
    comes = (psc != 0.0).flatten(1).any(1).tolist()
    a, s, phi = differentiable_decay(tau_mem.new_tensor(dt), tau_mem, tau_syn)
    # of V at the end of a step with a crossing, as in ``kernels``; a U that has reached a threshold below 0 stays above it
    least = torch.where(threshold > 0.0, ROUNDING * (a + phi) * threshold, threshold)
    longest = torch.minimum(tau_mem, tau_syn).clamp(max=dt)
    i = torch.zeros_like(psp[0])
    u = i - bias
    release = torch.full_like(u, -math.inf)
    # (sample, neuron and kind, time, slope, step) of each batch of spikes; the first, of no spikes, ties silence to the inputs
    no_time = torch.cat([x.flatten()[:0] for x in (time, weight, neurons)]).to(time)
    no_index = torch.empty(0, dtype=torch.int64, device=time.device)
    emitted: list[tuple[Tensor, ...]] = [(no_index, no_index, no_time, no_time.detach(), no_index)]
    total = torch.zeros(len(u), dtype=torch.int64, device=u.device)
    for step in range(steps):
        end = (step + 1) * dt
        u_begin, i_begin = u, i
        free, i = flow(u, i, a, s, phi)
        u, i = free + psp[step], i + psc[step]
        check_finite(bool(torch.isfinite(u).all() and torch.isfinite(i).all()))
        candidates = (torch.maximum(free, u) >= least) | (release > end - dt)
        if not candidates.any():
            continue
        at = sample, n = candidates.nonzero(as_tuple=True)
        tau = tau_mem[n], tau_syn[n]
        u_n, i_n, released = u_begin[at], i_begin[at], release[at]
        zero, before = torch.zeros_like(u_n), torch.full_like(n, BEFORE)
        parts = [(zero + dt, zero, zero, zero, before)]
        if comes[step]:
            y, u_jump, i_jump, last = _as_one(psp[step][at], psc[step][at], longest[n], dt, *tau)
            parts = [(dt - y, y, zero, zero, before), (y, zero, u_jump, i_jump, last)]
        for length, rest, u_arriving, i_arriving, kind in parts:
            u_n, i_n = u_n + u_arriving, i_n + i_arriving
            left = torch.minimum(length, end - rest - released).clamp(min=0.0)  # without what is held at rest
            u_n = torch.where(left < length, -bias[n], u_n)
            i_n = i_n * torch.exp(-(length - left) / tau[1])
            while True:
                with torch.no_grad():
                    after, fired = _next_crossing(u_n, i_n, left, threshold[n], *tau)
                if not fired.any():
                    break
                k = fired.nonzero().squeeze(1)
                after, m, tau_k = after[k], n[k], (tau[0][k], tau[1][k])
                u_k, i_k = flow(u_n[k], i_n[k], *differentiable_decay(after, *tau_k))
                # a crossing whose slope is lost to rounding still has a finite gradient
                rise = slope(i_k, threshold[m], tau_k[0]).detach().clamp(min=1e-16 * (v_th / tau_mem).detach()[m])
                # 0 up to rounding; its gradient is that of the crossing, by implicit differentiation
                miss = u_k - threshold[m]
                after = after - (miss - miss.detach()) / effective_slope(rise)
                to_end = (left[k] - after).clamp(min=0.0)
                spike_time = end - (to_end + rest[k])
                code, spike_step = KINDS * m + kind[k], torch.full_like(m, step)
                emitted.append((sample[k], code, spike_time.to(time), rise.to(time), spike_step))
                total += torch.bincount(sample[k], minlength=len(total))
                check_spike_count(int(total.max()))
                released = released.index_put((k,), spike_time + refractory[m])
                following = (to_end - refractory[m]).clamp(min=0.0)
                u_n = u_n.index_put((k,), -bias[m])  # eq. (3)
                i_n = i_n.index_put((k,), i_n[k] * torch.exp(-(after + to_end - following) / tau_k[1]))
                left = left.index_put((k,), following)
            u_n, i_n = flow(u_n, i_n, *differentiable_decay(left, *tau))
        u = u.index_put(at, u_n)
        release = release.index_put(at, released)
    return with_kinds(sorted_tape(emitted, time.new_empty((len(u), 0))))


def _as_one(
    psp: Tensor, psc: Tensor, longest: Tensor, dt: float, tau_mem: Tensor, tau_syn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What stands for the arrivals of a step: the time before its end, what it adds to U and I, and where spikes behind it lie.

    To U it adds 0, whose gradient is not: when it comes depends on (psp, psc), but not what follows, which is the state at
    the end of the step, run backwards.
    """
    with torch.no_grad():
        y = arrival_offset(psp, psc, tau_mem, tau_syn)
        inside = (y >= -EDGE * dt) & (y <= (1.0 + EDGE) * dt)
    y = torch.where(inside, y.clamp(0.0, dt), longest)
    a, s, phi = differentiable_decay(y, tau_mem, tau_syn)
    u_jump, i_jump = rewind(psp, psc, a, s, phi)
    between = psp / torch.where(inside, 1.0, phi)
    kind = torch.where(inside, AFTER, BETWEEN)
    return y, torch.where(inside, u_jump - u_jump.detach(), 0.0), torch.where(inside, i_jump, between), kind


def _effects(
    time: Tensor, index: Tensor, weight: Tensor, tau_mem: Tensor, tau_syn: Tensor, steps: int, dt: float
) -> tuple[Tensor, Tensor]:
    """[T, B, N] psp and psc that the arrivals of each step have raised in each neuron by its end, eq. (11)."""
    comes = (index >= 0)[:, :, None] & (time < steps * dt)
    sample, column, row = comes.expand(-1, -1, len(weight)).nonzero(as_tuple=True)
    at = time.expand(-1, -1, len(weight))[sample, column, row]
    step = step_of(at.detach(), dt).clamp(max=steps - 1)
    y = ((step + 1).double() * dt - at).clamp(min=0.0)
    _, s, phi = differentiable_decay(y, tau_mem[row], tau_syn[row])
    through = weight[row, index[sample, column]]
    silence = weight.new_zeros((steps, len(index), len(weight)))
    where = (step, sample, row)
    psp, psc = (silence.index_put(where, through * effect, accumulate=True) for effect in (phi, s))
    return psp, psc


def _next_crossing(
    u: Tensor, i: Tensor, left: Tensor, threshold: Tensor, tau_mem: Tensor, tau_syn: Tensor
) -> tuple[Tensor, Tensor]:
    """The first dt in [0, left] with U(dt) = ``threshold`` while rising, and where there is one. U has at most one extremum."""
    u_end, i_end = flow(u, i, *elementwise_decay(left, tau_mem, tau_syn))
    below = (u < threshold) & (left > 0.0)
    peaks = below & (u_end < threshold) & (i > u) & (i > 0.0) & (i_end < u_end)
    peak = peak_time(torch.where(peaks, u, 0.0), torch.where(peaks, i, 1.0), tau_mem, tau_syn)
    peaks &= i * torch.exp(-peak / tau_syn) >= threshold  # U = I at the peak
    crossing = peaks | (below & (u_end >= threshold))
    on_threshold = (u >= threshold) & (i > u)  # only by rounding

    # bisection-guarded Newton, from the left
    low, high = torch.zeros_like(u), torch.where(peaks, peak, left)
    dt = low
    for _ in range(100):
        u_now, i_now = flow(u, i, *elementwise_decay(dt, tau_mem, tau_syn))
        under = u_now < threshold
        low, high = torch.where(under, dt, low), torch.where(under, high, dt)
        rise = slope(i_now, u_now, tau_mem)
        following = dt + (threshold - u_now) / torch.where(rise > 0.0, rise, math.inf)
        outside = (following < low) | (following > high) | (rise <= 0.0)
        following = torch.where(outside, 0.5 * (low + high), following)
        moved = crossing & ((following - dt).abs() > 1e-14 * left)  # V is right to far less than 1e-12
        dt = following
        if not moved.any():
            break
    return torch.where(on_threshold, 0.0, dt), crossing | on_threshold
