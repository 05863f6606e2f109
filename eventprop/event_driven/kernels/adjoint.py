"""The backward pass: the adjoint variables of a layer, walked from its last spike to its first arrival.

Shapes: B samples, M inputs, N neurons, K arrivals, S emitted spikes in the longest row.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from ...jit import arrays, jit, threads
from ...neuron import LIF, adjoint_flow, arrival_time_gradient, decay, spike_jump
from ...tape import Tape
from .common import arrivals_before

ADJOINT_BLOCK = 96  # most neurons per backward task
ADJOINT_TASKS = 4  # fewest backward tasks; fixed, so that sums do not depend on the number of threads


def adjoint(
    time: Tensor, index: Tensor, weight_t: Tensor, tape: Tape, grad: Tensor, neuron: LIF, v_reset: float, t_end: float,
    need_time: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dtime [B, K] and dL/dweight_t [M, N] from ``grad`` [B, S] = dL/d(emitted time); empty where not needed.

    ``v_reset`` is by how much a spike lowers V: v_th, or 0 for mere observations of V.
    """
    (batch, arrivals), (inputs, width) = time.shape, weight_t.shape
    blocks = -(-width // ADJOINT_BLOCK)
    chunks = max(1, min(batch, ADJOINT_TASKS // max(blocks, 1)))
    grad_weight = torch.zeros((chunks, inputs if need_weight else 0, width), dtype=weight_t.dtype)
    grad_time = torch.zeros((blocks, batch, arrivals if need_time else 0), dtype=weight_t.dtype)
    with threads():
        adjoint_batch(
            *arrays(time, index, weight_t, *tape, grad, grad_weight, grad_time),
            neuron.tau_mem, neuron.tau_syn, v_reset, t_end,
        )  # fmt: skip
    return grad_time.sum(0), grad_weight[0] if chunks == 1 else grad_weight.sum(0)


@jit
def interval_decay(time, t_end, tau_mem, tau_syn, out):
    """The coefficients of eq. (5) for the stretch from each arrival to the next one (or t_end)."""
    for e in range(arrivals_before(time, t_end)):
        until = np.float64(time[e + 1]) if e + 1 < len(time) and time[e + 1] < t_end else t_end
        out[e, 0], out[e, 1], out[e, 2] = decay(until - np.float64(time[e]), tau_mem, tau_syn)


@jit
def adjoint_sample(
    time, index, weight_t, coefficients, out_time, out_neuron, out_slope, out_after, grad, first, stop,
    grad_weight, grad_time, tau_mem, tau_syn, v_th, t_end,
):  # fmt: skip
    """Walk one sample backwards for the neurons [first, stop): add to ``grad_weight`` [M, N] unless it is empty, and
    write their share of dL/dt of each arrival to ``grad_time`` [K] unless it is empty."""
    width = stop - first
    p, q = np.zeros(width, weight_t.dtype), np.zeros(width, weight_t.dtype)
    p_at, at = np.zeros(width), np.full(width, np.inf)  # p beyond the last jump in this stretch, and its time
    jump = np.empty(len(out_time))
    k = len(out_time) - 1
    while k >= 0 and not first <= out_neuron[k] < stop:  # padding, and other blocks' spikes
        k -= 1
    if k < 0:
        return
    e = out_after[k]  # p = q = 0 after the last spike, so the walk starts there
    until = np.float64(time[e + 1]) if e + 1 < len(time) and time[e + 1] < t_end else t_end
    while e >= 0:
        now = np.float64(time[e])
        latest = k
        while k >= 0 and out_after[k] == e:
            n = out_neuron[k] - first
            if 0 <= n < width:
                if at[n] == np.inf:
                    p_at[n], at[n] = p[n], until
                t = np.float64(out_time[k])
                p_k = p_at[n] * math.exp(-(at[n] - t) / tau_mem)
                jump[k] = spike_jump(p_k, grad[k], out_slope[k], v_th, tau_mem)
                p_at[n], at[n] = p_k + jump[k], t
            k -= 1
        a_e, s_e, phi_e = coefficients[e, 0], coefficients[e, 1], coefficients[e, 2]
        for n in range(width):
            p[n], q[n] = adjoint_flow(p[n], q[n], a_e, s_e, phi_e)
        for j in range(k + 1, latest + 1):  # the flow is linear: what each jump adds at the start of the stretch
            n = out_neuron[j] - first
            if 0 <= n < width:
                a, s, phi = decay(np.float64(out_time[j]) - now, tau_mem, tau_syn)
                p_j, q_j = adjoint_flow(jump[j], 0.0, a, s, phi)
                p[n] += p_j
                q[n] += q_j
                at[n] = np.inf
        until = now
        while e >= 0 and time[e] == now:  # all arrivals at this time
            if len(grad_weight):
                row = grad_weight[index[e], first:stop]
                for n in range(width):
                    row[n] += q[n]
            if len(grad_time):
                row = weight_t[index[e], first:stop]
                total = row.dtype.type(0.0)
                for n in range(width):
                    total += arrival_time_gradient(p[n], q[n], row[n], tau_mem, tau_syn)
                grad_time[e] = total
            e -= 1


@jit(parallel=True)
def adjoint_batch(
    time, index, weight_t, out_time, out_neuron, out_slope, out_after, grad, grad_weight, grad_time,
    tau_mem, tau_syn, v_th, t_end,
):  # fmt: skip
    """``grad_weight`` [chunks of samples, M, N] and ``grad_time`` [blocks of neurons, B, K]: the tasks' shares."""
    batch, width = len(time), weight_t.shape[1]
    chunks, blocks = len(grad_weight), len(grad_time)
    coefficients = np.empty((batch, time.shape[1], 3), weight_t.dtype)
    for b in numba.prange(batch):
        interval_decay(time[b], t_end, tau_mem, tau_syn, coefficients[b])
    for task in numba.prange(chunks * blocks):
        chunk, block = task // blocks, task % blocks
        first, stop = block * width // blocks, (block + 1) * width // blocks
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            adjoint_sample(
                time[b], index[b], weight_t, coefficients[b], out_time[b], out_neuron[b], out_slope[b], out_after[b],
                grad[b], first, stop, grad_weight[chunk], grad_time[block, b], tau_mem, tau_syn, v_th, t_end,
            )  # fmt: skip
