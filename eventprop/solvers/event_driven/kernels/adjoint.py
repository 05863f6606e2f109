"""The backward pass: the adjoint variables of a layer, walked from its last spike to its first arrival.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from eventprop.core.neuron import LIF, adjoint_flow, arrival_time_gradient, decay, spike_jump

from ...arguments import Arrivals, Constants
from ...chunks import backward_tasks, part_of, weight_gradient
from ...compilation.exponential import exp
from ...compilation.jit import arrays, inlined, jit, threads
from ...emission import Columns, row_of
from ...tape import Tape
from .common import arrivals_before, at_rest, input_major

ADJOINT_BLOCK = 384  # most neurons per backward task


def adjoint(
    time: Tensor, index: Tensor, weight: Tensor, tape: Tape, grad: Tensor, neuron: LIF, v_reset: float, t_end: float,
    need_time: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight [N, M] from ``grad`` [B, S] = dL/d(emitted time); empty where not needed.

    ``v_reset`` is by how much a spike lowers V: v_th, or 0 for mere observations of V.
    """
    nothing, stop = at_rest(len(time), t_end)
    return adjoint_between(time, index, weight, tape, grad, nothing, stop, neuron, v_reset, need_time, need_weight)[:2]


def adjoint_between(
    time: Tensor, index: Tensor, weight: Tensor, tape: Tape, grad: Tensor, grad_end: Tensor, stop: Tensor, neuron: LIF,
    v_reset: float, need_time: bool, need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same for a walk that ends at ``stop`` [B], from ``grad_end`` [2, B, N] = dL/d(state at its end), or [2, 0, 0] if that
    is 0; and dL/d(state at its begin), of the same shape."""
    (batch, arrivals), (width, inputs) = time.shape, weight.shape
    blocks = -(-width // ADJOINT_BLOCK)
    chunks = max(1, min(batch, backward_tasks(batch) // max(blocks, 1)))
    inputs = inputs if need_weight else 0
    # the weights are needed for the gradient of the times alone
    weight_t, by_emitted = arrays(input_major(weight) if need_time else weight.new_empty(0, width), grad)
    shares = np.empty((chunks, inputs, width), weight_t.dtype)
    grad_time = np.zeros((blocks, batch, arrivals if need_time else 0), weight_t.dtype)
    grad_begin = grad_end.clone(memory_format=torch.contiguous_format)
    with threads():
        adjoint_batch(
            Arrivals(*arrays(time, index)), weight_t, Columns(*arrays(*tape)), by_emitted, Constants.of(neuron), v_reset,
            *arrays(stop, grad_begin), shares, grad_time,
        )  # fmt: skip
        return torch.from_numpy(grad_time.sum(0)), weight_gradient(shares), grad_begin


class Coefficients(NamedTuple):
    """Room for what ``decays`` computes, for K arrivals and S spikes."""

    stretch: np.ndarray  # [3, K]
    spike: np.ndarray  # [4, S]


@jit
def decays(time, arrivals, tape, spikes, coefficients, tau_mem, tau_syn, t_end):
    """Fill in the coefficients of eq. (5): in ``stretch`` from each of the first ``arrivals`` to the next one (or t_end), and
    in ``spike`` from the arrival before each of the ``spikes`` to the spike, and how p decays from there to the end of the
    stretch."""
    stretch, spike = coefficients
    length = np.empty(arrivals)
    for e in range(arrivals):
        until = np.float64(time[e + 1]) if e + 1 < len(time) else np.inf
        length[e] = min(until, t_end) - np.float64(time[e])
    for e in range(arrivals):
        stretch[0, e], stretch[1, e], stretch[2, e] = decay(length[e], tau_mem, tau_syn)
    since = np.empty(spikes)
    until = np.empty(spikes)
    for k in range(spikes):
        e = tape.after[k]
        since[k] = np.float64(tape.time[k]) - np.float64(time[e])
        until[k] = length[e] - since[k]
    for k in range(spikes):
        spike[0, k], spike[1, k], spike[2, k] = decay(since[k], tau_mem, tau_syn)
        spike[3, k] = exp(-until[k] / tau_mem)


@inlined  # compiled apart, it would be other code, of other rounding, in the process that compiles than in those after it
def adjoint_sample(
    time, index, weight_t, tape, grad, block, constants, v_reset, t_end, grad_state, grad_weight, grad_time, coefficients
):  # fmt: skip
    """Walk one sample backwards for the neurons of a ``block``, its first and the one after its last: add to ``grad_weight``
    [M, N] unless it is empty, and write their share of dL/dt of each arrival to ``grad_time`` [K] unless it is empty. It begins
    with p and q in ``grad_state`` [2, 1, N], and leaves there those before the first arrival, unless it is empty."""
    (first, stop), (tau_mem, tau_syn, _), (stretch, spike) = block, constants, coefficients
    out_time, out_neuron, out_slope, out_after = tape
    real, width = weight_t.dtype.type, stop - first
    p, q = np.zeros(width, weight_t.dtype), np.zeros(width, weight_t.dtype)
    p_at, at = np.zeros(width), np.full(width, np.inf)  # p beyond the last jump in this stretch, and its time
    own, jump = np.empty(len(out_time), np.int64), np.empty(len(out_time))
    # the row of the weight gradient that gets its q in the next pass; at first, none
    pending = np.zeros(width, weight_t.dtype)
    k = len(out_time) - 1
    while k >= 0 and not first <= out_neuron[k] < stop:  # padding, and other blocks' spikes
        k -= 1
    e = out_after[k] if k >= 0 else -1  # p = q = 0 after the last spike, so the walk starts there
    if grad_state.shape[1]:
        p[:], q[:] = grad_state[0, 0, first:stop], grad_state[1, 0, first:stop]
        e = arrivals_before(time, t_end) - 1
    if e < 0:
        return
    decays(time, e + 1, tape, k + 1, coefficients, tau_mem, tau_syn, t_end)
    while e >= 0:
        jumps = 0
        while k >= 0 and out_after[k] == e:
            n = out_neuron[k] - first
            if 0 <= n < width:
                t = np.float64(out_time[k])
                p_k = p[n] * spike[3, k] if at[n] == np.inf else p_at[n] * exp(-(at[n] - t) / tau_mem)
                own[jumps], jump[jumps] = k, spike_jump(p_k, grad[k], out_slope[k], v_reset, tau_mem)
                p_at[n], at[n] = p_k + jump[jumps], t
                jumps += 1
            k -= 1
        a_e, s_e, phi_e = real(stretch[0, e]), real(stretch[1, e]), real(stretch[2, e])
        for n in range(width):
            pending[n] += q[n]
            p[n], q[n] = adjoint_flow(p[n], q[n], a_e, s_e, phi_e)
        for j in range(jumps):  # the flow is linear: what each jump adds at the start of the stretch
            n = out_neuron[own[j]] - first
            p_j, q_j = adjoint_flow(jump[j], 0.0, spike[0, own[j]], spike[1, own[j]], spike[2, own[j]])
            p[n] += p_j
            q[n] += q_j
            at[n] = np.inf
        now = time[e]
        while e >= 0 and time[e] == now:  # all arrivals at this time
            if len(grad_weight):
                row = grad_weight[index[e], first:stop]
                if e > 0 and time[e - 1] < now:  # another pass follows
                    pending = row
                else:
                    for n in range(width):
                        row[n] += q[n]
            if len(grad_time):
                row = weight_t[index[e], first:stop]
                total = real(0.0)
                for n in range(width):
                    total += arrival_time_gradient(p[n], q[n], row[n], tau_mem, tau_syn)
                grad_time[e] = total
            e -= 1
    if grad_state.shape[1]:
        grad_state[0, 0, first:stop], grad_state[1, 0, first:stop] = p, q


@jit(parallel=True)
def adjoint_batch(arrivals, weight_t, tape, grad, constants, v_reset, stop, grad_state, shares, grad_time):
    """A task is a chunk of samples and a block of neurons. ``shares`` [chunks, M, N] is what the chunks give to dL/dweight, and
    ``grad_time`` [blocks, B, K] what the blocks give to dL/dtime."""
    batch, width = len(arrivals.time), weight_t.shape[1]
    chunks, blocks = len(shares), len(grad_time)
    for task in numba.prange(chunks * blocks):
        chunk, number = task // blocks, task % blocks
        block = part_of(number, blocks, width)
        share = shares[chunk]
        share[:, block[0] : block[1]] = 0.0
        coefficients = Coefficients(np.empty((3, arrivals.time.shape[1])), np.empty((4, tape.time.shape[1])))
        first, after = part_of(chunk, chunks, batch)
        for b in range(first, after):
            adjoint_sample(
                arrivals.time[b], arrivals.source[b], weight_t, row_of(tape, b, 0), grad[b], block, constants, v_reset, stop[b],
                grad_state[:, b : b + 1], share, grad_time[number, b], coefficients,
            )  # fmt: skip
