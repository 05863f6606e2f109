"""The search for the next threshold crossing between two events, in numba; ``crossing_reference`` is the same in torch.

A neuron with a constant current b follows the flow of eq. (6) in U = V - b, and crosses v_th - b, which may be below 0. So
the search takes a threshold of any sign; its callers say what is V here.
"""

from __future__ import annotations

import math

import numpy as np

from eventprop.core.neuron import decay, flow, peak_time, slope

from .compilation.exponential import exp
from .compilation.jit import inlined, jit

NEVER = -1.0
# Of the shorter time constant: a step x as small on the parabola misses V by at most I x^3/2, 1e-14 of the threshold for an I
# as large as the threshold. For a larger I the step must be smaller.
EXACT = 3e-5


@jit
def next_crossing(v, i, v_end, i_end, horizon, tau_mem, tau_syn, threshold):
    """The first dt in [0, horizon] with V(dt) = threshold while rising (eq. 2), or NEVER; (v_end, i_end) is the state at the
    horizon. If the threshold is above 0 that state may have vanished: a peak is found from the state now."""
    if v >= threshold:  # V starts on the threshold only by rounding
        return 0.0 if i > v else NEVER
    if threshold > 0.0 and i <= threshold:  # I only falls, and a peak has V = I
        return NEVER
    high = horizon
    if v_end < threshold:
        # V has at most one peak, above 0, and stays above 0 after it; a V that ends below an I above the threshold still rises
        if threshold <= 0.0 or i_end >= threshold:
            return NEVER
        high = peak_time(v, i, tau_mem, tau_syn)
        if high >= horizon or i * exp(-high / tau_syn) < threshold:  # V = I at the peak
            return NEVER
    return follow_to_threshold(v, i, v_end, horizon, high, tau_mem, tau_syn, threshold)


@jit
def follow_to_threshold(v, i, v_end, horizon, high, tau_mem, tau_syn, threshold):
    """The dt in [0, high] with V(dt) = threshold, for a V that starts below and is not below at ``high``: on the local
    parabola, again and again, kept inside [low, high], where V(low) < threshold <= V(high)."""
    low = dt = 0.0
    v_now, i_now = v, i
    for trial in range(100):
        if trial == 0 and v_end >= threshold:
            step = first_guess(v, i, v_end, horizon, tau_mem, tau_syn, threshold)
        else:
            step = time_to_threshold(v_now, i_now, tau_mem, tau_syn, threshold)
        if not dt + step >= low:  # NaN, or a bad guess
            following = 0.5 * (low + high)
        else:
            following = min(dt + step, high)
            allowed = max(abs(v), abs(threshold))
            if is_exact(following - dt, abs(i_now) + abs(v_now), tau_mem, tau_syn, allowed):
                return following
        dt = following
        a, s, phi = decay(dt, tau_mem, tau_syn)
        v_now, i_now = flow(v, i, a, s, phi)
        if v_now < threshold:
            low = dt
        else:
            high = dt
    return dt


@inlined
def quick_crossing(v, i, v_end, horizon, tau_mem, tau_syn, threshold):
    """``next_crossing`` of a V that starts below and ends above the threshold, where one step after the first guess is
    enough; NaN elsewhere. Without branches, for many neurons at once."""
    guess = min(max(first_guess(v, i, v_end, horizon, tau_mem, tau_syn, threshold), 0.0), horizon)
    a, s, phi = decay(guess, tau_mem, tau_syn)
    v_now, i_now = flow(v, i, a, s, phi)
    step = time_to_threshold(v_now, i_now, tau_mem, tau_syn, threshold)
    dt = guess + step
    crosses = (v < threshold) & (v_end >= threshold) & (dt >= 0.0) & (dt <= horizon)
    return dt if is_exact(step, i_now, tau_mem, tau_syn, threshold) & crosses else np.nan


@inlined
def first_guess(v, i, v_end, horizon, tau_mem, tau_syn, threshold):
    """The time to the threshold for a V that ends above it: on the parabola that V follows now, bent by one Newton step to
    the cubic that also ends at ``v_end``."""
    step, rise = time_to_threshold(v, i, tau_mem, tau_syn, threshold), slope(i, v, tau_mem)
    bend = (i / tau_syn + rise) / tau_mem
    cubic = (v_end - v - horizon * (rise - 0.5 * bend * horizon)) / (horizon * horizon * horizon)
    return step - cubic * step * step * step / (rise - step * (bend - 3.0 * cubic * step))


@inlined
def time_to_threshold(v, i, tau_mem, tau_syn, threshold):
    """How long the parabola that V follows now takes to the threshold; NaN if V does not rise or the parabola misses it."""
    gap, rise = threshold - v, slope(i, v, tau_mem)
    bend = (i / tau_syn + rise) / tau_mem  # -V''
    return 2.0 * gap / (rise + math.sqrt(rise * rise - 2.0 * bend * gap)) if rise > 0.0 else np.nan


@inlined
def is_exact(step, size, tau_mem, tau_syn, allowed):
    """Whether only rounding is left after a ``step`` on the parabola, of a state of that ``size``, against ``allowed``."""
    x = abs(step) / (EXACT * min(tau_mem, tau_syn))
    return x * x * x * size <= allowed
