"""The solver for neurons of all kinds: time constants and thresholds of their own, a constant current, a refractory period,
and connections back to their own layer. One neuron after the other, so slower than the kernels for plain layers.

With a constant current b, eq. (1) is tau_mem dV/dt = -V + I + b: V - b follows the flow of eq. (6). In the refractory period
after a spike V is held at 0. The bias begins at time 0; before, there are only arrivals. A recurrent spike arrives after a
delay, and acts as any arrival does.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row, E events of one sample: its arrivals
and, in a recurrent layer, its own spikes as they arrive.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import adjoint_flow, arrival_time_gradient, decay, decay_by_tau, flow, peak_time, slope

from ...compilation.exponential import exp
from ...compilation.jit import arrays, is_finite, jit, threads
from ...tape import MAX_SPIKES_PER_SAMPLE, Tape
from .common import arrivals_before
from .forward import NEVER, follow_to_threshold, recorded, sort_by_time

# columns of the parameters [N, 5] of the neurons
TAU_MEM, TAU_SYN, V_TH, BIAS, REFRACTORY = range(5)
ORIGIN = np.iinfo(np.int64).min  # the event at time 0 of a sample whose first arrival comes before

# Of the longer time constant: no crossing comes later, since U is down to 1e-260 of what it was, and the sign of a smaller
# one means nothing.
REACH = 600.0
TASKS = 4  # chunks of samples in the backward pass; fixed, so that sums do not depend on the number of threads


def forward(
    time: Tensor, index: Tensor, weight_t: Tensor, recurrent_t: Tensor, delay: float, neurons: Tensor, t_end: float
) -> Tape:
    """Emitted spikes of a layer that receives the spikes ``time``, ``index`` [B, K] through ``weight_t`` [M, N] and its own
    spikes, ``delay`` ms later, through ``recurrent_t`` [N, N], or [0, N] if it is not recurrent; ``neurons`` [N, 5]."""
    received = arrays(time, index, weight_t, recurrent_t)
    parameters = arrays(neurons.double())[0]
    return recorded(
        lambda *out: simulate_batch(*received, delay, parameters, *out, t_end),
        len(time),
        len(neurons),
        received[0].dtype,
        tasks=len(time),
    )


def adjoint(
    time: Tensor, index: Tensor, weight_t: Tensor, recurrent_t: Tensor, delay: float, neurons: Tensor, tape: Tape,
    grad: Tensor, t_end: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dL/d(time, weight_t, recurrent_t, neurons) from ``grad`` [B, S] = dL/d(emitted time); that of the refractory
    period is not computed, and 0."""
    received = arrays(time, index, weight_t, recurrent_t)
    chunks = max(1, min(TASKS, len(time)))
    grad_time = np.zeros(time.shape, received[0].dtype)
    shares = [np.zeros((chunks, *x.shape)) for x in (weight_t, recurrent_t, neurons)]
    with threads():
        adjoint_batch(
            *received, delay, *arrays(neurons.double()), *arrays(tape.time, tape.neuron, tape.slope, tape.after, grad), t_end,
            grad_time, *shares,
        )  # fmt: skip
    weight, recurrent, parameters = (torch.from_numpy(x.sum(0)).to(weight_t.dtype) for x in shares)
    return torch.from_numpy(grad_time), weight, recurrent, parameters


@jit
def next_crossing(v, i, horizon, tau_mem, tau_syn, v_th, bias):
    """The first dt in [0, horizon] with V(dt) = v_th while rising, or NEVER. V has at most one extremum."""
    u, threshold = v - bias, v_th - bias
    if u >= threshold:  # V starts on the threshold only by rounding
        return 0.0 if i > u else NEVER
    horizon = min(horizon, REACH * max(tau_mem, tau_syn))
    a, s, phi = decay(horizon, tau_mem, tau_syn)
    u_end, i_end = flow(u, i, a, s, phi)
    high = horizon
    if u_end < threshold:
        # U = I > 0 at a maximum, and U stays above 0 after it; a U that ends below an I above the threshold still rises
        if threshold <= 0.0 or i <= threshold or i_end >= threshold:
            return NEVER
        high = peak_time(u, i, tau_mem, tau_syn)
        if high >= horizon or i * exp(-high / tau_syn) < threshold:
            return NEVER
    return follow_to_threshold(u, i, u_end, horizon, high, tau_mem, tau_syn, threshold)


@jit
def next_spike(v, i, release, now, until, neuron):
    """The time of the next spike in [now, until], or +inf. Until ``release``, V is held at 0."""
    tau_mem, tau_syn, v_th, bias = neuron[TAU_MEM], neuron[TAU_SYN], neuron[V_TH], neuron[BIAS]
    if release > now:
        if release >= until:
            return np.inf
        v, i, now = 0.0, i * exp(-(release - now) / tau_syn), release
    dt = next_crossing(v, i, until - now, tau_mem, tau_syn, v_th, bias)
    return np.inf if dt == NEVER else min(now + dt, until)


@jit
def flow_until(v, i, release, now, until, neuron):
    """V and I at ``until`` of a neuron that does not spike before."""
    tau_mem, tau_syn, bias = neuron[TAU_MEM], neuron[TAU_SYN], neuron[BIAS]
    if release > now:
        if release >= until:
            return 0.0, i * exp(-(until - now) / tau_syn)
        v, i, now = 0.0, i * exp(-(release - now) / tau_syn), release
    a, s, phi = decay(until - now, tau_mem, tau_syn)
    u, i = flow(v - bias, i, a, s, phi)
    return u + bias, i


@jit
def without_bias(parameters):
    unbiased = parameters.copy()
    unbiased[:, BIAS] = 0.0
    return unbiased


@jit
def simulate(
    time, index, weight_t, recurrent_t, delay, parameters, out_time, out_neuron, out_slope, out_after, t_end
):  # fmt: skip
    """One sample, as ``forward.simulate``; a layer without ``recurrent_t`` [N, N] has an empty one, [0, N]. If the spikes do
    not fit, it returns how much room to try next: those that are missing would have acted on the others."""
    real, capacity, width, recurrent = out_time.dtype.type, len(out_time), len(parameters), len(recurrent_t) > 0
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
            until = min(until, max(now, np.float64(out_time[delivered]) + delay))
        for n in range(width):
            first[n] = next_spike(v[n], i[n], release[n], now, until, neurons[n])
        if recurrent:
            until = min(until, first.min() + delay)
        begin = spikes
        for n in range(width):
            at = now
            while first[n] <= until:
                if spikes == capacity:
                    return (
                        min(2 * capacity, MAX_SPIKES_PER_SAMPLE) if capacity < MAX_SPIKES_PER_SAMPLE else capacity + 1
                    )
                # I at the spike, and V just after it, eq. (3)
                i[n] *= exp(-(first[n] - at) / neurons[n, TAU_SYN])
                v[n], at = 0.0, first[n]
                rise = slope(i[n], neurons[n, V_TH] - neurons[n, BIAS], neurons[n, TAU_MEM])
                out_time[spikes], out_neuron[spikes], out_after[spikes] = min(real(at), real(until)), n, e - 1
                # a crossing whose slope is lost to rounding still has a finite gradient
                out_slope[spikes] = max(rise, 1e-16 * neurons[n, V_TH] / neurons[n, TAU_MEM])
                spikes += 1
                release[n] = at + neurons[n, REFRACTORY]
                first[n] = next_spike(v[n], i[n], release[n], at, until, neurons[n])
            v[n], i[n] = flow_until(v[n], i[n], release[n], at, until, neurons[n])
        if begin < spikes:
            sort_by_time(out_time[begin:spikes], out_neuron[begin:spikes], out_slope[begin:spikes])
        now = until
        while recurrent and delivered < spikes and out_time[delivered] + delay <= now:
            i += recurrent_t[out_neuron[delivered]]
            delivered += 1
        while e < len(time) and time[e] <= now:
            i += weight_t[index[e]]
            e += 1
        if not (is_finite(v) and is_finite(i)):
            return -1
    return spikes


@jit(parallel=True)
def simulate_batch(
    time, index, weight_t, recurrent_t, delay, neurons, out_time, out_neuron, out_slope, out_after, t_end
):  # fmt: skip
    counts = np.zeros(len(time), np.int64)
    for b in numba.prange(len(time)):
        counts[b] = simulate(
            time[b], index[b], weight_t, recurrent_t, delay, neurons, out_time[b], out_neuron[b], out_slope[b],
            out_after[b], t_end,
        )  # fmt: skip
    return counts


@jit
def replay(
    time, index, weight_t, recurrent_t, delay, parameters, out_time, out_neuron, out_after, spikes, t_end, end, source, v, i,
    release, i_spike, own_stretch,
):  # fmt: skip
    """Walk a sample forward again, its spikes known: fill in the ``end`` [E + 1] of every stretch between events, the
    ``source`` [E] of the event there (an arrival e, -1 - k for the own spike k, or ORIGIN), the state ``v``, ``i``,
    ``release`` [E + 1, N] with which each stretch begins, I at each spike, and the stretch of each spike. Return when the
    first stretch begins, and the number of events."""
    width, recurrent = len(parameters), len(recurrent_t) > 0
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
        own = recurrent and delivered < spikes and max(now, np.float64(out_time[delivered]) + delay) <= until
        if own:
            until = max(now, np.float64(out_time[delivered]) + delay)
        origin = now < 0.0 < until
        if origin:
            until, own = 0.0, False
        at[:] = now
        # a spike may come, to rounding, at the time of the arrival that causes it
        while k < spikes and out_after[k] < e and np.float64(out_time[k]) <= until:
            n, t = out_neuron[k], np.float64(out_time[k])
            state_i[n] *= exp(-(t - at[n]) / neurons[n, TAU_SYN])
            i_spike[k], own_stretch[k] = state_i[n], events
            state_v[n], at[n], held[n] = 0.0, t, t + neurons[n, REFRACTORY]
            k += 1
        for n in range(width):
            state_v[n], state_i[n] = flow_until(state_v[n], state_i[n], held[n], at[n], until, neurons[n])
        end[events], now = until, until
        if until >= t_end:
            return begin, events
        if own:
            state_i += recurrent_t[out_neuron[delivered]]
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
    i_release = i * exp(-(release - at) / neuron[TAU_SYN])
    p, q = flow_back(p, q, 0.0, i_release, until - release, neuron, grad)
    by_release = -p * slope(i_release + neuron[BIAS], 0.0, neuron[TAU_MEM])
    return 0.0, flow_back_held(q, i, release - at, neuron, grad), by_release


@jit
def adjoint_sample(
    time, index, weight_t, recurrent_t, delay, parameters, out_time, out_neuron, out_slope, out_after, grad, t_end,
    grad_time, grad_weight, grad_recurrent, grad_parameters,
):  # fmt: skip
    """Walk one sample backwards."""
    width = len(parameters)
    unbiased, grad_unbiased = without_bias(parameters), np.zeros_like(grad_parameters)
    spikes = np.searchsorted(out_time, np.inf)
    stretches = len(time) + (spikes if len(recurrent_t) else 0) + 2
    end, source = np.empty(stretches), np.empty(stretches, np.int64)
    v, i, release = np.empty((stretches, width)), np.empty((stretches, width)), np.empty((stretches, width))
    i_spike, by_time, own_stretch = np.empty(spikes), np.empty(spikes), np.empty(spikes, np.int64)
    for k in range(spikes):
        by_time[k] = grad[k]
    begin, events = replay(
        time, index, weight_t, recurrent_t, delay, parameters, out_time, out_neuron, out_after, spikes, t_end, end, source,
        v, i, release, i_spike, own_stretch,
    )  # fmt: skip
    p, q, by_release = np.zeros(width), np.zeros(width), np.zeros(width)
    until = np.empty(width)
    k = spikes - 1
    for stretch in range(events, -1, -1):
        start = end[stretch - 1] if stretch > 0 else begin
        neurons, grad_neurons = (parameters, grad_parameters) if start >= 0.0 else (unbiased, grad_unbiased)
        until[:] = end[stretch]
        while k >= 0 and own_stretch[k] == stretch:
            n, t = out_neuron[k], np.float64(out_time[k])
            p[n], q[n], moved = flow_back_from_spike(
                p[n], q[n], i_spike[k], until[n], t, t + neurons[n, REFRACTORY], neurons[n], grad_neurons[n]
            )
            by_spike = by_time[k] + by_release[n] + moved
            p[n], by_release[n] = -by_spike / out_slope[k], 0.0  # eq. (9)
            grad_neurons[n, V_TH] += by_spike / out_slope[k]
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
        row = weight_t[index[event]] if event >= 0 else recurrent_t[out_neuron[-1 - event]]
        total = 0.0
        for n in range(width):
            total += arrival_time_gradient(p[n], q[n], row[n], neurons[n, TAU_MEM], neurons[n, TAU_SYN])
        if event >= 0:
            grad_time[event] = total
            grad_weight[index[event]] += q
        else:
            by_time[-1 - event] += total
            grad_recurrent[out_neuron[-1 - event]] += q
    grad_parameters[:, :BIAS] += grad_unbiased[:, :BIAS]


@jit(parallel=True)
def adjoint_batch(
    time, index, weight_t, recurrent_t, delay, neurons, out_time, out_neuron, out_slope, out_after, grad, t_end,
    grad_time, grad_weight, grad_recurrent, grad_neurons,
):  # fmt: skip
    """The shares of the chunks of samples are the rows of ``grad_weight`` and of those after it."""
    batch, chunks = len(time), len(grad_weight)
    for chunk in numba.prange(chunks):
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            adjoint_sample(
                time[b], index[b], weight_t, recurrent_t, delay, neurons, out_time[b], out_neuron[b], out_slope[b],
                out_after[b], grad[b], t_end, grad_time[b], grad_weight[chunk], grad_recurrent[chunk], grad_neurons[chunk],
            )  # fmt: skip
