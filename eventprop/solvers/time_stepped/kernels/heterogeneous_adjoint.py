"""The walk back through the steps of layers of all kinds; shapes and conventions as in ``heterogeneous``.

The state of the walk is (p, q) at the end of a step. What stands for the arrivals of the step is linear in (psp, psc), so that
every jump of p inside the step, flown to its end, is one of (p, q) there; it acts on what arrives in the step as far as its
spike lies behind that. The hold of V after a spike ends p, at its release, and so is a jump of p to 0 there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import adjoint_flow, decay, effect_time_gradient, spike_jump

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.jit import arrays, jit, threads
from ...emission import Columns, row_of
from ...event_driven.kernels.heterogeneous import (
    BIAS,
    REFRACTORY,
    TAU_MEM,
    TAU_SYN,
    V_TH,
    empty_coefficients,
    rates_of,
)  # fmt: skip
from ...tape import Tape
from ..grid import Steps
from ..reference import AFTER, BETWEEN, KINDS
from .heterogeneous import (
    BY_TAU_MEM,
    BY_TAU_SYN,
    PSC,
    PSP,
    RELEASE,
    RELEASE_KIND,
    Layer,
    delayed_effects,
    effects_of,
    step_at,
)  # fmt: skip


class Gradients(NamedTuple):
    """dL/d(time, weight_t, delay_t, recurrent_t, neurons) where kernels add it up."""

    time: np.ndarray
    weight_t: np.ndarray
    delay_t: np.ndarray
    recurrent_t: np.ndarray
    neurons: np.ndarray


class Releases(NamedTuple):
    """The ends of the holds of V in the window, in the order of their steps."""

    spike: np.ndarray
    until: np.ndarray
    step: np.ndarray


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, delays: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, grid: Steps,
    tape: Tape, kept: Tensor, grad: Tensor, need_time: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight, delays, recurrent, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory period
    is not computed, and 0, and that of the times only if needed, else empty."""
    layer = Layer.of(weight, delays, recurrent, delay, neurons, grid, False)
    arrivals = Arrivals(*arrays(time, index))
    chunks = min(max(1, backward_tasks(len(time))), max(1, len(time)))
    connections = (layer.weight_t, layer.delay_t, layer.recurrent_t)
    shares = [np.zeros((chunks, *x.shape), arrivals.time.dtype) for x in connections]
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    gradients = Gradients(by_time, shares[0], shares[1], shares[2], np.zeros((chunks, *layer.neurons.shape)))
    with threads():
        adjoint_batch(arrivals, layer, grid, Columns(*arrays(*tape)), *arrays(kept, grad), gradients)
        by_connections = [weight_gradient(share) for share in shares]
    by_neurons = torch.from_numpy(gradients.neurons.sum(0).T.copy()).to(neurons.dtype)
    return torch.from_numpy(by_time), *by_connections, by_neurons


@jit
def releases_of(tape, spikes, refractory, grid):
    spike, until, step = np.empty(spikes, np.int64), np.empty(spikes), np.empty(spikes, np.int64)
    count = 0
    for k in range(spikes):
        hold = refractory[tape.neuron[k]]
        if hold > 0.0:
            until[count] = np.float64(tape.time[k]) + hold
            first, emitted = np.int64(math.floor(until[count] / grid.dt)), tape.after[k] // KINDS
            first += np.int64((first + 1) * grid.dt <= until[count]) - np.int64(first * grid.dt > until[count])
            spike[count], step[count] = k, max(first, emitted)
            count += 1
    order = np.argsort(until[:count], kind="mergesort")
    order = order[np.argsort(step[:count][order], kind="mergesort")]
    return Releases(spike[:count][order], until[:count][order], step[:count][order])


@jit
def last_freed(tape, spikes, refractory):
    """For each spike, since when V has been free of a hold; 0, when currents begin, if it never was held."""
    freed, last = np.zeros(spikes), np.zeros(len(refractory))
    for k in range(spikes):
        n = tape.neuron[k]
        freed[k] = last[n]
        if refractory[n] > 0.0:
            last[n] = np.float64(tape.time[k]) + refractory[n]
    return freed


@jit
def jump_in_step(n, y, leap, kind, p, q, place, tau_mem, tau_syn, dt):
    """A jump of p, the time ``y`` before the end of the step: of (p, q) there, and of the gradient of what arrives."""
    a, s, phi = decay(y, tau_mem, tau_syn)
    p_jump, q_jump = leap / a, -phi * leap / (a * s)
    p[n] += p_jump
    q[n] += q_jump
    if kind == AFTER:
        place[PSP, n] += p_jump
        place[PSC, n] += q_jump
    elif kind == BETWEEN:
        longest = min(dt, tau_mem, tau_syn)
        _, _, raised = decay(max(longest - y, 0.0), tau_mem, tau_syn)
        _, _, whole = decay(longest, tau_mem, tau_syn)
        place[PSP, n] += raised / whole * leap


@jit
def add_weight_gradients(seen, effects, grad_row):
    """Of an arrival at all neurons, from the gradients ``seen`` [2, N] of its effects: those of its weights."""
    by_psp, by_psc, s, phi = seen[PSP], seen[PSC], effects.s, effects.phi
    for n in range(len(grad_row)):
        grad_row[n] += phi[n] * by_psp[n] + s[n] * by_psc[n]


@jit
def time_gradient(row, seen, effects, taus, by_synapse):
    """Of an arrival at all neurons: the gradient of its time, through each weight in ``by_synapse`` and in all."""
    by_psp, by_psc, s, phi, (tau_mem, tau_syn) = seen[PSP], seen[PSC], effects.s, effects.phi, taus
    total = row.dtype.type(0.0)
    for n in range(len(row)):
        by_synapse[n] = row[n] * effect_time_gradient(by_psp[n], by_psc[n], phi[n], s[n], tau_mem[n], tau_syn[n])
    for n in range(len(row)):
        total += by_synapse[n]
    return total


@jit
def jumps_of_step(step, k, r, layer, grid, tape, kept, by_time, freed, releases, p, q, place, grad_neurons):
    """All spikes, and ends of holds, of one step, from the last one on; returns which ones remain before the step."""
    end, kinds = (step + 1) * grid.dt, KINDS * step
    while True:
        spike = k >= 0 and tape.after[k] >= kinds
        release = r >= 0 and releases.step[r] == step
        if not spike and not release:
            return k, r
        if release and (not spike or releases.until[r] >= tape.time[k]):
            j = releases.spike[r]
            n, kind = tape.neuron[j], np.int64(kept[j, RELEASE_KIND])
            y = max(end - releases.until[r], 0.0)
            leap = -p[n] * math.exp(-y / layer.neurons[TAU_MEM, n])
            by_time[j] += leap * kept[j, RELEASE]
            r -= 1
        else:
            n, kind = tape.neuron[k], tape.after[k] - kinds
            tau_mem, v_th = layer.neurons[TAU_MEM, n], layer.neurons[V_TH, n]
            y = max(end - np.float64(tape.time[k]), 0.0)
            p_y = p[n] * math.exp(-y / tau_mem)
            lowered = 0.0 if layer.neurons[REFRACTORY, n] > 0.0 else v_th
            leap = spike_jump(p_y, by_time[k], np.float64(tape.slope[k]), lowered, tau_mem)
            grad_neurons[V_TH, n] -= p_y + leap
            grad_neurons[BIAS, n] += leap * (1.0 - math.exp(-max(np.float64(tape.time[k]) - freed[k], 0.0) / tau_mem))
            if kept.shape[1]:
                grad_neurons[TAU_MEM, n] += leap * kept[k, BY_TAU_MEM]
                grad_neurons[TAU_SYN, n] += leap * kept[k, BY_TAU_SYN]
            k -= 1
        jump_in_step(n, y, leap, kind, p, q, place, layer.neurons[TAU_MEM, n], layer.neurons[TAU_SYN, n], grid.dt)


@jit
def adjoint_sample(
    time, source, layer, grid, tape, kept, grad, grad_time, grad_weight, grad_delay, grad_recurrent, grad_neurons
):
    """Walk one sample backwards. The ring has the gradients of what arrives in each step."""
    spikes, width, real = np.searchsorted(tape.time, np.inf), layer.neurons.shape[1], layer.weight_t.dtype
    if spikes == 0:
        return
    releases = releases_of(tape, spikes, layer.neurons[REFRACTORY], grid)
    freed = last_freed(tape, spikes, layer.neurons[REFRACTORY])
    by_time = grad[:spikes].astype(np.float64)
    p, q = np.zeros(width), np.zeros(width)
    ring, gathered = np.zeros((layer.places, 2, width), real), np.empty((2, width), real)
    effects, rates = empty_coefficients(width, real), rates_of(layer.neurons[TAU_MEM], layer.neurons[TAU_SYN])
    taus = layer.neurons[TAU_MEM].astype(real), layer.neurons[TAU_SYN].astype(real)
    steps, by_synapse = np.empty(width, np.int64), np.empty(width, real)
    k, r, e = spikes - 1, len(releases.step) - 1, len(time) - 1
    while e >= 0 and step_at(np.float64(time[e]), grid) == grid.steps:
        e -= 1
    while r >= 0 and releases.step[r] >= grid.steps:
        r -= 1
    for step in range(grid.steps - 1, -1, -1):
        place = ring[step % layer.places]
        place[PSP], place[PSC] = p, q
        j = k
        while len(layer.recurrent_t) and j >= 0 and tape.after[j] >= KINDS * step:
            t, n = np.float64(tape.time[j]) + layer.delay, tape.neuron[j]
            arrives = max(step_at(t, grid), step + 1)
            if arrives < grid.steps:
                effects_of(t, arrives, effects, layer, grid, rates)
                seen = ring[arrives % layer.places]
                add_weight_gradients(seen, effects, grad_recurrent[n])
                by_time[j] += time_gradient(layer.recurrent_t[n], seen, effects, taus, by_synapse)
            j -= 1
        k, r = jumps_of_step(step, k, r, layer, grid, tape, kept, by_time, freed, releases, p, q, place, grad_neurons)
        while e >= 0 and step_at(np.float64(time[e]), grid) == step:
            t, m = np.float64(time[e]), source[e]
            if len(layer.delay_t):
                delayed_effects(t, layer.delay_t[m], effects, steps, layer, grid)
                gather(ring, steps, grid, gathered)
                seen = gathered
            else:
                effects_of(t, step, effects, layer, grid, rates)
                seen = place
            add_weight_gradients(seen, effects, grad_weight[m])
            if len(layer.delay_t) or len(grad_time):
                total = time_gradient(layer.weight_t[m], seen, effects, taus, by_synapse)
            if len(grad_time):
                grad_time[e] = total
            if len(layer.delay_t):
                for n in range(width):
                    grad_delay[m, n] += by_synapse[n]
            e -= 1
        flow_back(p, q, layer.step)


@jit
def gather(ring, steps, grid, gathered):
    """The gradients [2, N] of what arrives in each neuron in a step of its own."""
    for n in range(len(steps)):
        if steps[n] < grid.steps:
            at = steps[n] % len(ring)
            gathered[PSP, n], gathered[PSC, n] = ring[at, PSP, n], ring[at, PSC, n]
        else:
            gathered[PSP, n] = gathered[PSC, n] = 0.0


@jit
def flow_back(p, q, coefficients):
    a, s, phi = coefficients[0], coefficients[1], coefficients[2]
    for n in range(len(p)):
        p[n], q[n] = adjoint_flow(p[n], q[n], a[n], s[n], phi[n])


@jit(parallel=True)
def adjoint_batch(arrivals, layer, grid, tape, kept, grad, gradients):
    """The shares of the chunks of samples are the rows of the ``gradients``, but for the times."""
    batch, chunks = len(arrivals.time), len(gradients.weight_t)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], layer, grid, row_of(tape, b, 0), kept[b], grad[b], gradients.time[b],
                gradients.weight_t[chunk], gradients.delay_t[chunk], gradients.recurrent_t[chunk], gradients.neurons[chunk],
            )  # fmt: skip
