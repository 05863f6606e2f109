"""Layers whose synapses have delays and whose neurons differ: each neuron of each sample is a layer of its own, which receives
the arrivals at times of its own.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from ...arguments import Arrivals
from ...chunks import backward_tasks, part_of
from ...compilation.jit import arrays, jit, threads
from ...emission import Columns, recorded, row_of
from ...tape import Tape
from .heterogeneous import KEPT, REFRACTORY, Layer
from .heterogeneous_adjoint import adjoint_sample
from .heterogeneous_forward import Emitted, simulate, sort
from .span import at_rest


def forward(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, t_end: float, learns: bool
) -> tuple[Tape, Tensor]:
    """As ``heterogeneous_forward.forward``, of ``neurons`` [N, 5] with a ``delay`` [N, M] at each synapse. A spike's ``after``
    is how many deliveries its neuron got before it, less 1."""
    arrivals, synapses, parameters = Arrivals(*arrays(time, index)), arrays(weight, delay), _parameters(neurons)
    return recorded(
        lambda out, kept: simulate_batch(arrivals, *synapses, parameters, learns, out, kept, t_end),
        len(time),
        len(neurons),
        arrivals.time.dtype,
        len(time),
        KEPT if learns or parameters[REFRACTORY].any() else 0,
    )


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, delay: Tensor, neurons: Tensor, tape: Tape, kept: Tensor, grad: Tensor,
    t_end: float, need_time: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dL/d(time, weight, delay, neurons) from ``grad`` [B, S] = dL/d(emitted time), as ``heterogeneous_adjoint.adjoint``."""
    arrivals, synapses = Arrivals(*arrays(time, index)), arrays(weight, delay)
    chunks = max(1, min(len(time), backward_tasks(len(time))))
    shares = [np.zeros((chunks, *weight.shape), arrivals.time.dtype) for _ in synapses]
    shares.append(np.zeros((chunks, *neurons.shape)))
    by_time = np.zeros((len(time), time.shape[1] if need_time else 0), arrivals.time.dtype)
    with threads():
        adjoint_batch(
            arrivals, *synapses, _parameters(neurons), Columns(*arrays(*tape)), *arrays(kept, grad), t_end,
            by_time, *shares,
        )  # fmt: skip
    by_weight, by_delay, by_neurons = (torch.from_numpy(share.sum(0)) for share in shares)
    return torch.from_numpy(by_time), by_weight, by_delay, by_neurons.to(neurons.dtype)


def _parameters(neurons: Tensor) -> np.ndarray:
    return neurons.detach().double().t().contiguous().numpy()


@jit
def received(time, index, delay):
    """What a neuron with these delays [M] receives, in order: when, from which input, and by which arrival."""
    when = np.empty(np.searchsorted(time, np.inf))
    for e in range(len(when)):
        when[e] = np.float64(time[e]) + np.float64(delay[index[e]])
    arrival = np.argsort(when, kind="mergesort")
    return when[arrival], index[arrival], arrival


@jit
def layer_of(weight, neurons, n, learns):
    """Neuron ``n`` alone."""
    return Layer(weight[n].reshape(-1, 1), weight[:0, :1], 0.0, neurons[:, n : n + 1].copy(), True, learns)


@jit
def simulate_sample(time, index, weight, delay, neurons, learns, out, kept, t_end):
    """As ``heterogeneous_forward.simulate``."""
    spikes, width, finite = 0, neurons.shape[1], True
    place, last = np.zeros(width, np.int64), np.zeros(width, np.int64)
    for n in range(width):
        when, source, _ = received(time, index, delay[n])
        own = Columns(out.time[spikes:], out.neuron[spikes:], out.slope[spikes:], out.after[spikes:])
        layer, span = layer_of(weight, neurons, n, learns), at_rest(when, t_end)
        count, _, still_finite = simulate(
            when, source, layer, own, kept[spikes:], span, span.state, last.reshape(1, -1)
        )
        place[n], spikes, finite = spikes, spikes + count, finite and still_finite
        if spikes > len(out.time):
            return spikes, finite
        own.neuron[:count] = n
    sort(Emitted(out, kept, place), 0, spikes, last)
    return spikes, finite


@jit(parallel=True)
def simulate_batch(arrivals, weight, delay, neurons, learns, out, kept, t_end):
    batch = len(arrivals.time)
    counts, finite = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    for b in numba.prange(batch):
        counts[b], finite[b] = simulate_sample(
            arrivals.time[b], arrivals.source[b], weight, delay, neurons, learns, row_of(out, b, 0), kept[b], t_end
        )
    return counts, finite


@jit
def add_sample(
    time, index, weight, delay, neurons, tape, kept, grad, t_end, by_time, by_weight, by_delay, by_neurons
):  # fmt: skip
    """Add what one sample gives to the gradients."""
    spikes = np.searchsorted(tape.time, np.inf)
    by_neuron = np.argsort(tape.neuron[:spikes], kind="mergesort")
    begin = 0
    while begin < spikes:
        n, end = tape.neuron[by_neuron[begin]], begin
        while end < spikes and tape.neuron[by_neuron[end]] == n:
            end += 1
        own = by_neuron[begin:end]
        when, source, arrival = received(time, index, delay[n])
        span = at_rest(when, t_end)
        alone = Columns(tape.time[own], np.zeros(len(own), np.int64), tape.slope[own], tape.after[own])
        by_when, by_weight_t = np.zeros(len(when), by_weight.dtype), np.zeros((weight.shape[1], 1), by_weight.dtype)
        adjoint_sample(
            when, source, layer_of(weight, neurons, n, kept.shape[1] > 0), alone, kept[own], grad[own], span, span.state,
            by_when, by_weight_t, by_weight_t[:0], by_neurons[n : n + 1], span.state, span.own,
        )  # fmt: skip
        for m in range(weight.shape[1]):
            by_weight[n, m] += by_weight_t[m, 0]
        for e in range(len(when)):
            by_delay[n, source[e]] += by_when[e]
        for e in range(len(when) if len(by_time) else 0):
            by_time[arrival[e]] += by_when[e]
        begin = end


@jit(parallel=True)
def adjoint_batch(arrivals, weight, delay, neurons, tape, kept, grad, t_end, by_time, by_weight, by_delay, by_neurons):
    """A task is a chunk of samples; ``by_weight``, ``by_delay`` and ``by_neurons`` have a row for each."""
    batch, chunks = len(arrivals.time), len(by_weight)
    for chunk in numba.prange(chunks):
        first, stop = part_of(chunk, chunks, batch)
        for b in range(first, stop):
            add_sample(
                arrivals.time[b], arrivals.source[b], weight, delay, neurons, row_of(tape, b, 0), kept[b], grad[b], t_end,
                by_time[b], by_weight[chunk], by_delay[chunk], by_neurons[chunk],
            )  # fmt: skip
