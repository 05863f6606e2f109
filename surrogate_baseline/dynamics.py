"""Step by step: the equations of the neurons of rate-coded networks, and their parameters.

In every step, with V_r the reset potential (0 where the reset is soft),

    charge   H_t = V_{t-1} + (X_t - (V_{t-1} - V_r)) / tau     leaky;   H_t = V_{t-1} + X_t   integrate-and-fire
    fire     S_t = 1 where H_t >= v_th, else 0;                dS/dH := surrogate(H_t - v_th)
    reset    V_t = H_t (1 - S_t) + V_r S_t   hard;             V_t = H_t - v_th S_t   soft

so that, with k = dH_t/dV_{t-1}, the gradient with respect to H_t follows the recursion

    dH_t = dS_t g_t + k A_t dH_{t+1},    g_t = surrogate(H_t - v_th),    A_t = dV_t/dH_t
    A_t = 1 - S_t + (V_r - H_t) g_t   hard;    1 - v_th g_t   soft;    without the term in g_t if the reset is detached
"""

from __future__ import annotations

from typing import NamedTuple

from .surrogates import Surrogate


class Dynamics(NamedTuple):
    """H_t = keep V_{t-1} + gain X_t + (1 - keep) rest, then fire and reset as above."""

    keep: float
    gain: float
    v_th: float
    rest: float
    soft: bool
    detach_reset: bool
    surrogate: Surrogate
