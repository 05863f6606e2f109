"""What is carried over to the begin of a part of the window, and from its end, for neurons that differ or receive their own
spikes.

Shapes: B samples, N neurons, K arrivals, R own spikes that are carried over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...compilation.jit import inlined, jit
from ...emission import record

# rows of the state [6, N]: U and I, their derivatives by time constants, of this part of the window, and until when V is held
STATE_U, STATE_I, STATE_U_MEM, STATE_U_SYN, STATE_I_SYN, STATE_RELEASE = range(6)
CARRIED = -2  # ``after`` of spikes that are carried over


class Span(NamedTuple):
    """Of a batch; or of one sample, with rows and numbers in the place of arrays. A layer at rest has an empty ``state``
    [6, 0, 0]."""

    begin: np.ndarray  # [B] ms
    stop: np.ndarray  # [B] ms
    state: np.ndarray  # [6, B, N] at the begin; of one sample [6, 1, N]
    own: np.ndarray  # [B, R] when spikes were emitted that are still to arrive or hold their neuron, padded with +inf
    neuron: np.ndarray  # [B, R] of them, padded with -1
    delivered: np.ndarray  # [B] how many of them have arrived


def whole(time: Tensor, t_end: float) -> list[Tensor]:
    """The ``Span`` of layers at rest that receive the spikes ``time`` [B, K], up to ``t_end``."""
    batch = len(time)
    first = torch.cat([time, time.new_zeros(batch, 1)], dim=1)[:, 0]
    stop, none = torch.full((batch,), t_end, dtype=torch.float64), torch.empty((6, 0, 0), dtype=torch.float64)
    integers = torch.zeros((batch, 1), dtype=torch.int64)
    return [first.double().clamp(max=0.0), stop, none, time[:, :0], integers[:, :0], integers[:, 0]]


@jit
def at_rest(time, t_end):
    """The ``Span`` of one sample of such a layer that receives the spikes ``time`` [K]."""
    begin = min(0.0, time[0]) if len(time) else 0.0
    return Span(begin, t_end, np.empty((6, 0, 0)), time[:0], np.empty(0, np.int64), 0)


@inlined
def sample_of(span, b):
    return Span(span.begin[b], span.stop[b], span.state[:, b : b + 1], span.own[b], span.neuron[b], span.delivered[b])


@jit
def take_over(span, state, holds, out):
    """Begin with what is carried over. Returns how many spikes and how many held neurons there are."""
    spikes = held = 0
    for k in range(len(span.own)):
        if span.neuron[k] >= 0:
            record(out, k, span.own[k], span.neuron[k], np.inf, CARRIED)
            holds.last[span.neuron[k]] = k
            spikes += 1
    if span.state.shape[1]:
        state.u[:], state.i[:] = span.state[STATE_U, 0], span.state[STATE_I, 0]
        holds.release[:] = span.state[STATE_RELEASE, 0]
        for n in range(len(state.u)):
            if holds.release[n] >= span.begin:
                holds.neuron[held] = n
                held += 1
    return spikes, held


@jit
def hand_over(state, holds, end_state, end_last):
    """Write the state at the end, and the last spike of each neuron, unless there is no room."""
    if end_state.shape[1]:
        end_state[STATE_U, 0], end_state[STATE_I, 0], end_state[STATE_RELEASE, 0] = state.u, state.i, holds.release
        end_state[STATE_U_MEM, 0], end_state[STATE_U_SYN, 0] = state.u_mem, state.u_syn
        end_state[STATE_I_SYN, 0] = state.i_syn
        end_last[0] = holds.last
