"""The solver for neurons of all kinds: time constants and thresholds of their own, a constant current, a refractory period,
and connections back to their own layer. One neuron after the other, so slower than the kernels for plain layers.

With a constant current b, eq. (1) is tau_mem dV/dt = -V + I + b: V - b follows the flow of eq. (6). In the refractory period
after a spike V is held at 0. The bias begins at time 0; before, there are only arrivals. A recurrent spike arrives after a
delay, and acts as any arrival does.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, E events of one sample: its arrivals
and, in a recurrent layer, its own spikes as they arrive.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import adjoint_flow, arrival_time_gradient, crossing_slope, decay, decay_by_tau, flow, slope

from ...arguments import Arrivals
from ...chunks import part_of
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, is_finite, jit, threads
from ...crossing import NEVER, next_crossing
from ...emission import Columns, record, recorded, row_of, sort_by_time
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import arrivals_before

# columns of the parameters [N, 5] of the neurons
TAU_MEM, TAU_SYN, V_TH, BIAS, REFRACTORY = range(5)
ORIGIN = np.iinfo(np.int64).min  # the event at time 0 of a sample whose first arrival comes before

# Of the longer time constant: no crossing comes later, since U is down to 1e-260 of what it was, and the sign of a smaller
# one means nothing.
REACH = 600.0
CHUNKS = 4  # of samples in the backward pass; fixed, so that sums do not depend on the number of threads


class Layer(NamedTuple):
    """Its connections and neurons; one that is not recurrent has an empty ``recurrent_t``."""

    weight_t: np.ndarray  # [M, N]
    recurrent_t: np.ndarray  # [N, N] or [0, N]
    delay: float  # of recurrent spikes, in ms
    neurons: np.ndarray  # [N, 5]


class Gradients(NamedTuple):
    """dL/d(time, weight_t, recurrent_t, neurons) where kernels add it up."""

    time: np.ndarray
    weight_t: np.ndarray
    recurrent_t: np.ndarray
    neurons: np.ndarray


class History(NamedTuple):
    """A sample walked forward again, its spikes known."""

    begin: float  # of the first stretch between events
    events: int
    end: np.ndarray  # [E + 1] of every stretch
    source: np.ndarray  # [E] of the event there: an arrival e, -1 - k for the own spike k, or ORIGIN
    v: np.ndarray  # [E + 1, N] with which each stretch begins; so i and release
    i: np.ndarray
    release: np.ndarray
    i_spike: np.ndarray  # [S]
    own_stretch: np.ndarray  # [S] in which each spike lies


def forward(
    time: Tensor, index: Tensor, weight_t: Tensor, recurrent_t: Tensor, delay: float, neurons: Tensor, t_end: float
) -> Tape:
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N] and its own
    spikes, ``delay`` ms later, through ``recurrent_t`` [N, N], or [0, N] if it is not recurrent; ``neurons`` [N, 5]."""
    arrivals, layer = Arrivals(*arrays(time, index)), _layer(weight_t, recurrent_t, delay, neurons)
    return recorded(
        lambda out: simulate_batch(arrivals, layer, out, t_end), len(time), len(neurons), arrivals.time.dtype, len(time)
    )


def adjoint(
    time: Tensor, index: Tensor, weight_t: Tensor, recurrent_t: Tensor, delay: float, neurons: Tensor, tape: Tape,
    grad: Tensor, t_end: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight_t, recurrent_t, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory
    period is not computed, and 0."""
    arrivals, layer = Arrivals(*arrays(time, index)), _layer(weight_t, recurrent_t, delay, neurons)
    chunks = max(1, min(CHUNKS, len(time)))
    shares = (np.zeros((chunks, *x.shape)) for x in (weight_t, recurrent_t, neurons))
    gradients = Gradients(np.zeros_like(arrivals.time), *shares)
    with threads():
        adjoint_batch(arrivals, layer, Columns(*arrays(*tape)), *arrays(grad), t_end, gradients)
    by_time, *by_parameters = map(torch.from_numpy, gradients)
    return by_time, *(share.sum(0).to(weight_t.dtype) for share in by_parameters)


def _layer(weight_t: Tensor, recurrent_t: Tensor, delay: float, neurons: Tensor) -> Layer:
    weights, recurrent, parameters = arrays(weight_t, recurrent_t, neurons.double())
    return Layer(weights, recurrent, delay, parameters)


@inlined
def after_hold(v, i, release, now, until, tau_syn):
    """V, I and the time where V, held at 0 until ``release``, is free again, or at ``until`` if that comes first; if V is free,
    as they are."""
    if release <= now:
        return v, i, now
    free = min(release, until)
    return 0.0, i * exp(-(free - now) / tau_syn), free


@jit
def next_spike(v, i, release, now, until, neuron):
    """The time of the next spike in [now, until], or +inf."""
    tau_mem, tau_syn, bias = neuron[TAU_MEM], neuron[TAU_SYN], neuron[BIAS]
    if release > now and release >= until:
        return np.inf
    v, i, now = after_hold(v, i, release, now, until, tau_syn)
    u, horizon = v - bias, min(until - now, REACH * max(tau_mem, tau_syn))
    u_end, i_end = flow(u, i, *decay(horizon, tau_mem, tau_syn))
    dt = next_crossing(u, i, u_end, i_end, horizon, tau_mem, tau_syn, neuron[V_TH] - bias)
    return np.inf if dt == NEVER else min(now + dt, until)


@jit
def flow_until(v, i, release, now, until, neuron):
    """V and I at ``until`` of a neuron that does not spike before."""
    tau_mem, tau_syn, bias = neuron[TAU_MEM], neuron[TAU_SYN], neuron[BIAS]
    v, i, now = after_hold(v, i, release, now, until, tau_syn)
    u, i = flow(v - bias, i, *decay(until - now, tau_mem, tau_syn))
    return u + bias, i


@jit
def without_bias(parameters):
    unbiased = parameters.copy()
    unbiased[:, BIAS] = 0.0
    return unbiased


@jit
def simulate(time, index, layer, out, t_end):
    """One sample, as ``forward.simulate``. It stops at a spike that does not fit, which would have acted on the others."""
    weight_t, recurrent_t, delay, parameters = layer
    real, room = out.time.dtype.type, min(len(out.time), MAX_SPIKES_PER_SAMPLE)
    width, recurrent = len(parameters), len(recurrent_t) > 0
    unbiased = without_bias(parameters)
    v, i, release, first = np.zeros(width), np.zeros(width), np.full(width, -np.inf), np.empty(width)
    time = time[: arrivals_before(time, t_end)]
    now = min(0.0, np.float64(time[0])) if len(time) else 0.0
    spikes = e = delivered = 0
    while now < t_end:
        neurons = parameters if now >= 0.0 else unbiased
        until = np.float64(time[e]) if e < len(time) else t_end
        if now < 0.0:
            until = min(until, 0.0)
        if recurrent and delivered < spikes:
            until = min(until, max(now, np.float64(out.time[delivered]) + delay))
        for n in range(width):
            first[n] = next_spike(v[n], i[n], release[n], now, until, neurons[n])
        if recurrent:
            until = min(until, first.min() + delay)
        begin = spikes
        for n in range(width):
            at = now
            while first[n] <= until:
                if spikes == room:
                    return spikes + 1, True
                # I at the spike, and V just after it, eq. (3)
                i[n] *= exp(-(first[n] - at) / neurons[n, TAU_SYN])
                v[n], at = 0.0, first[n]
                t = min(real(at), real(until))
                rise = crossing_slope(i[n], neurons[n, V_TH], neurons[n, TAU_MEM], neurons[n, BIAS])
                record(out, spikes, t, n, rise, e - 1)
                spikes += 1
                release[n] = at + neurons[n, REFRACTORY]
                first[n] = next_spike(v[n], i[n], release[n], at, until, neurons[n])
            v[n], i[n] = flow_until(v[n], i[n], release[n], at, until, neurons[n])
        if begin < spikes:
            sort_by_time(out, begin, spikes)
        now = until
        while recurrent and delivered < spikes and out.time[delivered] + delay <= now:
            i += recurrent_t[out.neuron[delivered]]
            delivered += 1
        while e < len(time) and time[e] <= now:
            i += weight_t[index[e]]
            e += 1
        if not (is_finite(v) and is_finite(i)):
            return spikes, False
    return spikes, True


@jit(parallel=True)
def simulate_batch(arrivals, layer, out, t_end):
    batch = len(arrivals.time)
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], finite[b] = simulate(arrivals.time[b], arrivals.source[b], layer, row_of(out, b, 0), t_end)
    return counts, finite


@jit
def replay(time, index, layer, tape, spikes, t_end):
    """The ``History`` of a sample."""
    weight_t, recurrent_t, delay, parameters = layer
    width, recurrent = len(parameters), len(recurrent_t) > 0
    stretches = len(time) + (spikes if recurrent else 0) + 2
    end, source = np.empty(stretches), np.empty(stretches, np.int64)
    v, i, release = np.empty((stretches, width)), np.empty((stretches, width)), np.empty((stretches, width))
    i_spike, own_stretch = np.empty(spikes), np.empty(spikes, np.int64)
    unbiased = without_bias(parameters)
    time = time[: arrivals_before(time, t_end)]
    begin = now = min(0.0, np.float64(time[0])) if len(time) else 0.0
    v[0], i[0], release[0] = 0.0, 0.0, -np.inf
    state_v, state_i, held = np.zeros(width), np.zeros(width), np.full(width, -np.inf)
    at = np.empty(width)
    events = k = e = delivered = 0
    while True:
        neurons = parameters if now >= 0.0 else unbiased
        until = np.float64(time[e]) if e < len(time) else t_end
        own = recurrent and delivered < spikes and max(now, np.float64(tape.time[delivered]) + delay) <= until
        if own:
            until = max(now, np.float64(tape.time[delivered]) + delay)
        origin = now < 0.0 < until
        if origin:
            until, own = 0.0, False
        at[:] = now
        # a spike may come, to rounding, at the time of the arrival that causes it
        while k < spikes and tape.after[k] < e and np.float64(tape.time[k]) <= until:
            n, t = tape.neuron[k], np.float64(tape.time[k])
            state_i[n] *= exp(-(t - at[n]) / neurons[n, TAU_SYN])
            i_spike[k], own_stretch[k] = state_i[n], events
            state_v[n], at[n], held[n] = 0.0, t, t + neurons[n, REFRACTORY]
            k += 1
        for n in range(width):
            state_v[n], state_i[n] = flow_until(state_v[n], state_i[n], held[n], at[n], until, neurons[n])
        end[events], now = until, until
        if until >= t_end:
            return History(begin, events, end, source, v, i, release, i_spike, own_stretch)
        if own:
            state_i += recurrent_t[tape.neuron[delivered]]
            source[events] = -1 - delivered
            delivered += 1
        elif origin:
            source[events] = ORIGIN
        else:
            state_i += weight_t[index[e]]
            source[events] = e
            e += 1
        events += 1
        v[events], i[events], release[events] = state_v, state_i, held


@jit
def flow_back(p, q, v, i, length, neuron, grad):
    """(p, q) at the start of a stretch without events in which V was free and began as ``v``, ``i``; add to ``grad`` what the
    stretch gives to the gradients of the parameters: those of eq. (6), p dV'/dx + q dI'/dx."""
    tau_mem, tau_syn, bias = neuron[TAU_MEM], neuron[TAU_SYN], neuron[BIAS]
    a, s, phi = decay(length, tau_mem, tau_syn)
    a_mem, phi_mem, s_syn, phi_syn = decay_by_tau(length, a, s, phi, tau_mem, tau_syn)
    grad[TAU_MEM] += p * (a_mem * (v - bias) + phi_mem * i)
    grad[TAU_SYN] += (p * phi_syn + q * s_syn) * i
    grad[BIAS] += p * (1.0 - a)
    return adjoint_flow(p, q, a, s, phi)


@jit
def flow_back_held(q, i, length, neuron, grad):
    """The same where V was held at 0, so that it does not depend on anything and p is 0."""
    s, tau_syn = exp(-length / neuron[TAU_SYN]), neuron[TAU_SYN]
    grad[TAU_SYN] += q * i * s * length / (tau_syn * tau_syn)
    return s * q


@jit
def flow_back_from_spike(p, q, i, until, at, release, neuron, grad):
    """(p, q) ``at`` a time from which V was held at 0 until ``release``, from those at ``until``; ``i`` is I at the former.
    The third number is dL/drelease: V begins to rise later."""
    if release > until:
        return 0.0, flow_back_held(q, i, until - at, neuron, grad), 0.0
    _, i_release, _ = after_hold(0.0, i, release, at, until, neuron[TAU_SYN])
    p, q = flow_back(p, q, 0.0, i_release, until - release, neuron, grad)
    by_release = -p * slope(i_release + neuron[BIAS], 0.0, neuron[TAU_MEM])
    return 0.0, flow_back_held(q, i, release - at, neuron, grad), by_release


@jit
def adjoint_sample(time, index, layer, tape, grad, t_end, grad_time, grad_weight, grad_recurrent, grad_parameters):
    """Walk one sample backwards."""
    weight_t, recurrent_t, _, parameters = layer
    width = len(parameters)
    unbiased, grad_unbiased = without_bias(parameters), np.zeros_like(grad_parameters)
    spikes = np.searchsorted(tape.time, np.inf)
    begin, events, end, source, v, i, release, i_spike, own_stretch = replay(time, index, layer, tape, spikes, t_end)
    by_time = grad[:spikes].astype(np.float64)
    p, q, by_release = np.zeros(width), np.zeros(width), np.zeros(width)
    until = np.empty(width)
    k = spikes - 1
    for stretch in range(events, -1, -1):
        start = end[stretch - 1] if stretch > 0 else begin
        neurons, grad_neurons = (parameters, grad_parameters) if start >= 0.0 else (unbiased, grad_unbiased)
        until[:] = end[stretch]
        while k >= 0 and own_stretch[k] == stretch:
            n, t = tape.neuron[k], np.float64(tape.time[k])
            p[n], q[n], moved = flow_back_from_spike(
                p[n], q[n], i_spike[k], until[n], t, t + neurons[n, REFRACTORY], neurons[n], grad_neurons[n]
            )
            by_spike = by_time[k] + by_release[n] + moved
            p[n], by_release[n] = -by_spike / tape.slope[k], 0.0  # eq. (9)
            grad_neurons[n, V_TH] += by_spike / tape.slope[k]
            until[n] = t
            k -= 1
        for n in range(width):
            if release[stretch, n] > start:
                p[n], q[n], moved = flow_back_from_spike(
                    p[n], q[n], i[stretch, n], until[n], start, release[stretch, n], neurons[n], grad_neurons[n]
                )
                by_release[n] += moved
            else:
                p[n], q[n] = flow_back(
                    p[n], q[n], v[stretch, n], i[stretch, n], until[n] - start, neurons[n], grad_neurons[n]
                )
        if stretch == 0:
            break
        event = source[stretch - 1]
        if event == ORIGIN:
            continue
        row = weight_t[index[event]] if event >= 0 else recurrent_t[tape.neuron[-1 - event]]
        total = 0.0
        for n in range(width):
            total += arrival_time_gradient(p[n], q[n], row[n], neurons[n, TAU_MEM], neurons[n, TAU_SYN])
        if event >= 0:
            grad_time[event] = total
            grad_weight[index[event]] += q
        else:
            by_time[-1 - event] += total
            grad_recurrent[tape.neuron[-1 - event]] += q
    grad_parameters[:, :BIAS] += grad_unbiased[:, :BIAS]


@jit(parallel=True)
def adjoint_batch(arrivals, layer, tape, grad, t_end, gradients):
    """The shares of the chunks of samples are the rows of the ``gradients``, but for the times."""
    batch, chunks = len(arrivals.time), len(gradients.weight_t)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], layer, row_of(tape, b, 0), grad[b], t_end,
                gradients.time[b], gradients.weight_t[chunk], gradients.recurrent_t[chunk], gradients.neurons[chunk],
            )  # fmt: skip
