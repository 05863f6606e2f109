"""The grid for neurons of all kinds: time constants and thresholds of their own, a constant current, a refractory period, and
synapses with delays of their own. In plain torch with gradients by autograd, so slower than the kernels for plain layers.

What ``reference`` says of a step holds here too. With a constant current b, V - b follows the flow of eq. (6). After a spike V
is held at 0 until its release, from which it flows on with the current at the end of the step, run backwards: an arrival of
that step counts as if it had come before. What each arrival does to each neuron is computed at once, so memory grows with
arrivals times neurons.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..autograd import differentiable_decay, elementwise_decay
from ..event_driven.reference import sorted_tape
from ..neuron import flow, rewind, slope
from ..spikes import step_of
from ..tape import Tape, check_finite, check_spike_count


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
    a, s, phi = differentiable_decay(tau_mem.new_tensor(dt), tau_mem, tau_syn)
    i = torch.zeros_like(psp[0])
    u = i - bias
    release = torch.full_like(u, -math.inf)
    holds = bool((refractory > 0.0).any())
    # (sample, neuron, time, slope, step) of each batch of spikes; the first, of no spikes, ties silence to the inputs
    no_time = torch.cat([x.flatten()[:0] for x in (time, weight, neurons)]).to(time)
    no_index = torch.empty(0, dtype=torch.int64, device=time.device)
    emitted: list[tuple[Tensor, ...]] = [(no_index, no_index, no_time, no_time.detach(), no_index)]
    total = torch.zeros(len(u), dtype=torch.int64, device=u.device)
    for step in range(steps):
        end = (step + 1) * dt
        u, i = flow(u, i, a, s, phi)
        u, i = u + psp[step], i + psc[step]
        left = torch.full_like(u, dt)  # the time before the end of the step since when V may have crossed
        if holds:
            free = (end - release).clamp(min=0.0)
            held = free < dt
            u = torch.where(held, _from_rest(i, torch.where(held, free, dt), tau_mem, tau_syn, bias), u)
            left = torch.where(held, free, dt).detach()
        check_finite(bool(torch.isfinite(u).all() and torch.isfinite(i).all()))
        while (above := u >= threshold).any():
            at = sample, n = above.nonzero(as_tuple=True)
            u_n, i_n, tau_n = u[at], i[at], (tau_mem[n], tau_syn[n])
            with torch.no_grad():
                y, inside = _crossing(u_n, i_n, left[at], threshold[n], *tau_n)
            u_y, i_y = rewind(u_n, i_n, *differentiable_decay(y, *tau_n))
            # a crossing whose slope is lost to rounding still has a finite gradient; one outside of its step is a constant
            rise = slope(i_y, threshold[n], tau_n[0]).detach().clamp(min=1e-16 * (v_th / tau_mem).detach()[n])
            rise = rise.masked_fill(~inside, math.inf)
            # 0 up to rounding; its gradient is that of the crossing, by implicit differentiation
            miss = u_y - threshold[n]
            y = y + (miss - miss.detach()) / effective_slope(rise)
            emitted.append((sample, n, (end - y).to(time), rise.to(time), torch.full_like(n, step)))
            if holds:
                free = (y - refractory[n]).clamp(min=0.0)
                u = u.index_put(at, _from_rest(i_n, free, *tau_n, bias[n]))
                release = release.index_put(at, end - y + refractory[n])
                left = left.index_put(at, free.detach())
            else:
                u = u.index_put(at, u_n - v_th[n] * torch.exp(-y / tau_n[0]))  # eq. (3), seen from the end of the step
                left = left.index_put(at, y.detach())
            total += above.sum(1)
            check_spike_count(int(total.max()))
    return sorted_tape(emitted, time.new_empty((len(u), 0)))


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


def _from_rest(i: Tensor, y: Tensor, tau_mem: Tensor, tau_syn: Tensor, bias: Tensor) -> Tensor:
    """U of a neuron that has been free for the time ``y``, which V began at 0, with the current ``i`` now."""
    a, s, phi = differentiable_decay(y, tau_mem, tau_syn)
    return flow(-bias, i / s, a, s, phi)[0]


def _crossing(
    u: Tensor, i: Tensor, left: Tensor, threshold: Tensor, tau_mem: Tensor, tau_syn: Tensor
) -> tuple[Tensor, Tensor]:
    """The time y <= ``left`` with U(-y) = ``threshold``, where U is (u, i) now and not below the threshold; and whether U was
    below it at -``left``. Where it was not, y is ``left``: the spike stays there.

    U has at most one extremum, so there is one crossing: bisection-guarded Newton from the left.
    """
    y, below, not_below = left, left, torch.zeros_like(left)
    inside = rewind(u, i, *elementwise_decay(left, tau_mem, tau_syn))[0] < threshold
    for _ in range(100):
        u_y, i_y = rewind(u, i, *elementwise_decay(y, tau_mem, tau_syn))
        under = u_y < threshold
        below, not_below = torch.where(under, y, below), torch.where(under, not_below, y)
        rise = slope(i_y, u_y, tau_mem)
        following = y - (threshold - u_y) / torch.where(rise > 0.0, rise, math.inf)
        outside = (following > below) | (following < not_below) | (rise <= 0.0)
        following = torch.where(outside, 0.5 * (below + not_below), following)
        moved = inside & ((following - y).abs() > 1e-14 * left)  # V is right to far less than 1e-12
        y = torch.where(inside, following, left)
        if not moved.any():
            break
    return y, inside
