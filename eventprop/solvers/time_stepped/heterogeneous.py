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

from eventprop.core.autograd import differentiable_decay
from eventprop.core.neuron import arrival_offset, crossing_slope, flow, least_after_crossing, rewind
from eventprop.core.spikes import step_of

from ..crossing_reference import next_crossing
from ..emission_reference import Emission
from ..tape import Tape, check_finite
from .reference import AFTER, BEFORE, BETWEEN, EDGE, KINDS, with_kinds


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
    # a U that has reached a threshold below 0 stays above it
    least = torch.where(threshold > 0.0, least_after_crossing(a, phi, threshold), threshold)
    longest = torch.minimum(tau_mem, tau_syn).clamp(max=dt)
    i = torch.zeros_like(psp[0])
    u = i - bias
    release = torch.full_like(u, -math.inf)
    # with the kind in the number of the neuron, and ``after`` the step
    emitted = Emission(len(u), torch.cat([x.flatten()[:0] for x in (time, weight, neurons)]).to(time))
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
            left = torch.minimum(length, end - rest - released).clamp(min=0.0)
            u_n, i_n = _after_hold(u_n, i_n, length - left, bias[n], tau[1])
            while True:
                with torch.no_grad():
                    after, fired = next_crossing(u_n, i_n, left, *tau, threshold[n])
                if not fired.any():
                    break
                k = fired.nonzero().squeeze(1)
                after, m, tau_k = after[k], n[k], (tau[0][k], tau[1][k])
                u_k, i_k = flow(u_n[k], i_n[k], *differentiable_decay(after, *tau_k))
                rise = crossing_slope(i_k, v_th[m], tau_k[0], bias[m]).detach()
                # 0 up to rounding; its gradient is that of the crossing, by implicit differentiation
                miss = u_k - threshold[m]
                after = after - (miss - miss.detach()) / effective_slope(rise)
                to_end = (left[k] - after).clamp(min=0.0)
                spike_time = end - (to_end + rest[k])
                code, spike_step = KINDS * m + kind[k], torch.full_like(m, step)
                emitted.add(sample[k], code, spike_time.to(time), rise.to(time), spike_step)
                released = released.index_put((k,), spike_time + refractory[m])
                following = (to_end - refractory[m]).clamp(min=0.0)
                u_k, i_k = _after_hold(-bias[m], i_n[k], after + to_end - following, bias[m], tau_k[1])  # eq. (3)
                u_n, i_n = u_n.index_put((k,), u_k), i_n.index_put((k,), i_k)
                left = left.index_put((k,), following)
            u_n, i_n = flow(u_n, i_n, *differentiable_decay(left, *tau))
        u = u.index_put(at, u_n)
        release = release.index_put(at, released)
    return with_kinds(emitted.tape())


def _after_hold(u: Tensor, i: Tensor, length: Tensor, bias: Tensor, tau_syn: Tensor) -> tuple[Tensor, Tensor]:
    """U and I after V was held at 0 for a time ``length`` >= 0."""
    return torch.where(length > 0.0, -bias, u), i * torch.exp(-length / tau_syn)


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
