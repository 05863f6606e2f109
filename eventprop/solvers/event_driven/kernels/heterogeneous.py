"""Neurons with parameters of their own, and layers that receive their own spikes: what their two passes share.

Shapes: M inputs, N neurons.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from eventprop.core.neuron import decay, decay_by_tau, short_parts, short_phi_by_rates

from ...compilation.jit import arrays, jit
from .common import input_major

SHORT = 0.4  # of the sum of the rates: the length of the stretches for which ``short_parts`` holds
# rows of the parameters [5, N] of the neurons
TAU_MEM, TAU_SYN, V_TH, BIAS, REFRACTORY = range(5)
# what is kept of a spike: the derivatives of V by tau_mem and tau_syn, the slope of V at the end of the hold after it, and the
# event after which that end comes, or inf
BY_TAU_MEM, BY_TAU_SYN, RELEASE, RELEASED_AFTER = range(4)
KEPT = 4


class Layer(NamedTuple):
    """Its connections and neurons; one that is not recurrent has an empty ``recurrent_t``."""

    weight_t: np.ndarray  # [M, N]
    recurrent_t: np.ndarray  # [N, N] or [0, N]
    delay: float  # of recurrent spikes, in ms
    neurons: np.ndarray  # [5, N]
    alike: bool  # whether all neurons have the same time constants
    learns: bool  # whether gradients of time constants are wanted

    @classmethod
    def of(cls, weight: Tensor, recurrent: Tensor, delay: float, neurons: Tensor, learns: bool) -> Layer:
        """From ``weight`` [N, M], ``recurrent`` [N, N] or [N, 0] and ``neurons`` [N, 5]."""
        parameters = neurons.detach().double().t().contiguous().numpy()
        alike = bool((parameters[:V_TH] == parameters[:V_TH, :1]).all())
        weight_t, recurrent_t = arrays(input_major(weight), input_major(recurrent))
        return cls(weight_t, recurrent_t, delay, parameters, alike, learns)


class Coefficients(NamedTuple):
    """Those of eq. (5), and their derivatives by the time constants, over one stretch; [N] each."""

    a: np.ndarray
    s: np.ndarray
    phi: np.ndarray
    a_mem: np.ndarray
    phi_mem: np.ndarray
    s_syn: np.ndarray
    phi_syn: np.ndarray


@jit
def empty_coefficients(width, real):
    return Coefficients(
        np.empty(width, real), np.empty(width, real), np.empty(width, real), np.empty(width, real), np.empty(width, real),
        np.empty(width, real), np.empty(width, real),
    )  # fmt: skip


@jit
def rates_of(tau_mem, tau_syn):
    """[N] of the membranes and of the synapses, and the sum of the fastest of both."""
    m, r = 1.0 / tau_mem, 1.0 / tau_syn
    return m, r, m.max() + r.max()


@jit
def fill(coefficients, length, rates, neurons, learns):
    """The ``coefficients`` of all neurons over a stretch of that ``length``. Each loop writes to one array or two: a loop that
    wrote to all would have to be checked for more overlaps than compilers do, and not become vector instructions."""
    tau_mem, tau_syn, (m, r, fastest) = neurons[TAU_MEM], neurons[TAU_SYN], rates
    a, s, phi, a_mem, phi_mem, s_syn, phi_syn = coefficients
    if length * fastest > SHORT:
        for n in range(len(a)):
            a[n], s[n], phi[n] = decay(length, tau_mem[n], tau_syn[n])
        if learns:
            for n in range(len(a)):
                a_mem[n], phi_mem[n], s_syn[n], phi_syn[n] = decay_by_tau(
                    length, a[n], s[n], phi[n], tau_mem[n], tau_syn[n]
                )
        return
    for n in range(len(a)):
        a[n], phi[n] = short_parts(length, m[n], r[n])
    for n in range(len(a)):
        s[n] = a[n] - 0.5 * length * (r[n] - m[n]) * phi[n]
    for n in range(len(a)):
        a[n] += 0.5 * length * (r[n] - m[n]) * phi[n]
    if learns:
        for n in range(len(a)):
            phi_mem[n], phi_syn[n] = short_phi_by_rates(length, phi[n], m[n], r[n])
        for n in range(len(a)):
            phi_mem[n] = -m[n] * m[n] * (length * phi[n] - m[n] * phi_mem[n])
        for n in range(len(a)):
            phi_syn[n] = r[n] * r[n] * m[n] * phi_syn[n]
        for n in range(len(a)):
            a_mem[n] = a[n] * length * m[n] * m[n]
        for n in range(len(a)):
            s_syn[n] = s[n] * length * r[n] * r[n]
    for n in range(len(a)):
        phi[n] *= length * m[n]
