"""Layers of all kinds on a grid, in plain torch with gradients by autograd: the reference for ``kernels.heterogeneous``, and
the solver on other devices.

Neurons with parameters of their own, synapses with delays of their own, and feedback, in one walk through the steps. What
``reference`` says of a step holds here too. With a constant current b, U = V - b follows the flow of eq. (6). After a spike V
is held at 0 until its release. What arrives in a later step waits for it.

Shapes: B samples, M inputs, N neurons, K arrivals, E of them, or own spikes, in one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eventprop.core.autograd import differentiable_decay
from eventprop.core.neuron import arrival_offset, crossing_slope, euler_step, flow, least_after_crossing, rewind
from eventprop.core.spikes import step_of

from ..crossing_reference import next_crossing
from ..emission_reference import Emission
from ..tape import Tape, check_finite
from .grid import Steps
from .reference import AFTER, BEFORE, BETWEEN, EDGE, KINDS, with_kinds


class Neurons(NamedTuple):
    """The columns of ``LearnableLIF.table``; [N], or [...] of some of them."""

    tau_mem: Tensor
    tau_syn: Tensor
    v_th: Tensor
    bias: Tensor
    refractory: Tensor

    def of(self, n: Tensor) -> Neurons:
        return Neurons(*(x[n] for x in self))


def forward(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, delay: float, table: Tensor, grid: Steps,
    effective_slope: Callable[[Tensor], Tensor],
) -> Tape:  # fmt: skip
    """Emitted spikes of neurons at rest, differentiable, as ``kernels.heterogeneous.forward``; ``table`` [N, 5]."""
    neurons = Neurons(*table.double().unbind(1))
    weight_t, delay_t, recurrent_t = (x.double().t() for x in (weight, delays, recurrent))
    threshold = neurons.v_th - neurons.bias  # of U = V - b
    a, s, phi = differentiable_decay(table.new_tensor(grid.dt).double(), neurons.tau_mem, neurons.tau_syn)
    # a U that has reached a threshold below 0 stays above it
    least = torch.where(threshold > 0.0, least_after_crossing(a, phi, threshold), threshold)
    if not grid.exact:
        a, s, phi = euler_step(grid.dt, neurons.tau_mem, neurons.tau_syn)
        least = threshold
    arriving = Arriving(neurons, len(time), grid)
    i = weight_t.new_zeros(len(time), len(table))
    u = i - neurons.bias
    release = torch.full_like(u, -math.inf)
    # with the kind in the number of the neuron, and ``after`` the step
    emitted = Emission(len(u), torch.cat([x.flatten()[:0] for x in (time, weight, delays, recurrent, table)]).to(time))
    for step, (sample, source, at) in enumerate(_by_step(time, index, grid)):
        later = delay_t[source] if delays.numel() else 0.0
        arriving.add(sample, at[:, None].double() + later, weight_t[source], step)
        comes, psp, psc = arriving.pop(step)
        u_begin, i_begin = u, i
        free, i = flow(u, i, a, s, phi)
        u, i = free + psp, i + psc
        check_finite(bool(torch.isfinite(u).all() and torch.isfinite(i).all()))
        candidates = (torch.maximum(free, u) >= least) | (release > step * grid.dt)
        if not candidates.any():
            continue
        where = sample, n = candidates.nonzero(as_tuple=True)
        walk = Walk(sample, n, neurons.of(n), step, grid, effective_slope)
        if grid.exact:
            walk.across(u_begin[where], i_begin[where], release[where], comes[sample], psp[where], psc[where])
        else:
            walk.to_the_end(u_begin[where], u[where], release[where])
        u, release = u.index_put(where, walk.u), release.index_put(where, walk.released)
        for spiking, n, kind, spike_time, rise in walk.spikes:
            at = spike_time.to(time)
            emitted.add(spiking, KINDS * n + kind, at, rise.to(time), torch.full_like(n, step))
            if recurrent.numel():
                arriving.add(spiking, at[:, None].double() + delay, recurrent_t[n], step + 1)
    return with_kinds(emitted.tape())


def _by_step(time: Tensor, index: Tensor, grid: Steps) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each step sample, input and time of the spikes that come in it."""
    steps = _steps_of(time.detach().double(), grid)
    sample, column = ((index >= 0) & (steps < grid.steps)).nonzero(as_tuple=True)
    step, order = steps[sample, column].sort(stable=True)
    sample, column = sample[order], column[order]
    counts = torch.bincount(step, minlength=grid.steps).tolist()
    columns = (sample, index[sample, column], time[sample, column])
    return list(zip(*(x.split(counts) for x in columns), strict=True))


def _steps_of(at: Tensor, grid: Steps) -> Tensor:
    """The steps in which what comes at these times acts; ``grid.steps`` at the end of the window and beyond."""
    inside = at < grid.steps * grid.dt
    at = torch.where(inside, at, 0.0)
    step = step_of(at, grid.dt).clamp(max=grid.steps - 1) if grid.exact else torch.round(at / grid.dt).long()
    return torch.where(inside, step, grid.steps)


class Arriving:
    """What has been emitted and acts in a step that is still to come."""

    def __init__(self, neurons: Neurons, batch: int, grid: Steps) -> None:
        self.neurons, self.grid = neurons, grid
        self.shape = (batch, len(neurons.tau_mem))
        self.waiting: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, sample: Tensor, at: Tensor, weight: Tensor, first: int) -> None:
        """Arrivals at times ``at`` [E, N], or [E, 1], through ``weight`` [E, N], which act in the step ``first`` or later."""
        if not len(sample):
            return
        tau_mem, tau_syn, *_ = self.neurons
        grid, at = self.grid, at.expand_as(weight)
        step = _steps_of(at.detach(), grid).clamp(min=first)
        if grid.exact:
            y = (step + 1).double() * grid.dt - at
            y = y + (y.clamp(0.0, grid.dt) - y).detach()
            _, psc, psp = differentiable_decay(y, tau_mem, tau_syn)
        else:
            _, s, phi = euler_step(grid.dt, tau_mem, tau_syn)
            moved = at - at.detach()
            psp, psc = phi - moved * (s - phi) / tau_mem, s + moved * s / tau_syn  # eq. (11)
        effects = torch.stack([weight * psp, weight * psc])
        for acts in step.unique().tolist():
            if acts < grid.steps:
                row, n = (step == acts).nonzero(as_tuple=True)
                place = sample[row] * self.shape[1] + n
                comes, values = self.waiting[acts] if acts in self.waiting else self._nothing(weight)
                values = values.index_add(1, place, effects[:, row, n])
                self.waiting[acts] = comes.index_fill(0, sample[row], True), values

    def pop(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """In which samples [B] something comes in this step, and psp and psc [B, N] at its end."""
        comes, values = self.waiting.pop(step) if step in self.waiting else self._nothing(self.neurons.tau_mem)
        psp, psc = values.unflatten(1, self.shape)
        return comes, psp, psc

    def _nothing(self, like: Tensor) -> tuple[Tensor, Tensor]:
        batch, neurons = self.shape
        return like.new_zeros(batch, dtype=torch.bool), like.new_zeros(2, batch * neurons)


class Walk:
    """Some neurons through one step, from spike to spike.

    Attributes:
        u, released: U at the end of the step, and until when V is held.
        spikes: sample, neuron, kind, time and slope of those that were emitted.
    """

    def __init__(
        self, sample: Tensor, n: Tensor, neurons: Neurons, step: int, grid: Steps,
        effective_slope: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.sample, self.n, self.neurons, self.effective_slope = sample, n, neurons, effective_slope
        self.step, self.grid, self.end = step, grid, (step + 1) * grid.dt
        self.spikes: list[tuple[Tensor, ...]] = []

    def to_the_end(self, u_begin: Tensor, u: Tensor, released: Tensor) -> None:
        """Spikes at the end of the step, and nowhere else."""
        (k,) = (u >= self.neurons.v_th - self.neurons.bias).nonzero(as_tuple=True)
        rise = ((u - u_begin) / self.grid.dt).detach()
        u_k, _ = self._fire(k, u[k], rise[k], torch.zeros_like(u[k]), torch.full_like(k, AFTER))
        self.u, self.released = u.index_put((k,), u_k), released

    def across(self, u: Tensor, i: Tensor, released: Tensor, comes: Tensor, psp: Tensor, psc: Tensor) -> None:
        """Spikes wherever they lie in the step, which begins with ``u`` and ``i``."""
        tau_mem, tau_syn, v_th, bias, refractory = self.neurons
        dt, zero, before = self.grid.dt, torch.zeros_like(u), torch.full_like(self.n, BEFORE)
        parts = [(zero + dt, zero, zero, zero, before)]
        if comes.any():
            y, u_jump, i_jump, last = _as_one(psp, psc, tau_mem, tau_syn, dt)
            y, u_jump, i_jump, last = (torch.where(comes, x, 0) for x in (y, u_jump, i_jump, last))
            parts = [(dt - y, y, zero, zero, before), (y, zero, u_jump, i_jump, last)]
        for left, rest, u_arriving, i_arriving, kind in parts:
            u, i = u + u_arriving, i + i_arriving
            while True:
                free = torch.minimum(left, self.end - rest - released).clamp(min=0.0)
                held = left - free
                u, i = torch.where(held > 0.0, -bias, u), i * torch.exp(-held / tau_syn)
                left = free
                with torch.no_grad():
                    after, fired = next_crossing(u, i, left, tau_mem, tau_syn, v_th - bias)
                if not fired.any():
                    break
                (k,) = fired.nonzero(as_tuple=True)
                # the crossing is at a fixed time, though the hold before it may end at another
                to_end = (left[k] - after[k] + rest[k]).clamp(min=0.0).detach()
                left_k = to_end - rest[k]
                after = left[k] - left_k
                u_k, i_k = flow(u[k], i[k], *differentiable_decay(after, tau_mem[k], tau_syn[k]))
                rise = crossing_slope(i_k, v_th[k], tau_mem[k], bias[k]).detach()
                u_k, spike_time = self._fire(k, u_k, rise, to_end, kind[k])
                until = torch.where(refractory[k] > 0.0, spike_time + refractory[k], -math.inf)
                released = released.index_put((k,), until)
                u, i, left = u.index_put((k,), u_k), i.index_put((k,), i_k), left.index_put((k,), left_k)
            u, i = flow(u, i, *differentiable_decay(left, tau_mem, tau_syn))
        self.u, self.released = u, released

    def _fire(self, k: Tensor, u: Tensor, rise: Tensor, to_end: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """U of the neurons ``k`` after their spike, and its time."""
        tau_mem, _, v_th, bias, _ = self.neurons.of(k)
        # 0 up to rounding; its gradient is that of the crossing, by implicit differentiation
        miss = u - (v_th - bias)
        miss = miss - miss.detach()
        moved = -miss / self.effective_slope(rise)
        spike_time = self.end - to_end + moved
        self.spikes.append((self.sample[k], self.n[k], kind, spike_time, rise))
        return miss - bias - v_th / tau_mem * moved, spike_time  # eq. (3), at a time that moves


def _as_one(
    psp: Tensor, psc: Tensor, tau_mem: Tensor, tau_syn: Tensor, dt: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What stands for the arrivals of a step: the time before its end, what it adds to U and I, and where spikes behind it lie.

    To U it adds 0, whose gradient is not: when it comes depends on (psp, psc), but not what follows, which is the state at
    the end of the step, run backwards.
    """
    with torch.no_grad():
        y = arrival_offset(psp, psc, tau_mem, tau_syn)
        inside = (y >= -EDGE * dt) & (y <= (1.0 + EDGE) * dt)
    y = torch.where(inside, y.clamp(0.0, dt), torch.minimum(tau_mem, tau_syn).clamp(max=dt))
    a, s, phi = differentiable_decay(y, tau_mem, tau_syn)
    u_jump, i_jump = rewind(psp, psc, a, s, phi)
    between = psp / torch.where(inside, 1.0, phi)
    kind = torch.where(inside, AFTER, BETWEEN)
    return y, torch.where(inside, u_jump - u_jump.detach(), 0.0), torch.where(inside, i_jump, between), kind
