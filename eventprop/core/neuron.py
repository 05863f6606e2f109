"""The leaky integrate-and-fire neuron with an exponential synapse, and its adjoint.

Every equation of the package stands here once; the rest of the code refers to it by number.
Times are in milliseconds, potentials are relative to rest, and the reset potential is rest (0).

Dynamics between, at and after events:

    (1)  free flow    tau_mem dV/dt = -V + I,    tau_syn dI/dt = -I
    (2)  transition   V(t) = v_th while rising
    (3)  jump         V -> V - v_th  (to exactly 0, since the crossing is exact)
    (4)  arrival      an input spike through weight w:  I -> I + w

Both the neuron and its adjoint are linear between events, so each has a closed-form flow: equations (5), (6) and (8)
below. Equations (1)-(4) and (8)-(10) are those of Wunderlich & Pehle, "Event-based backpropagation can compute exact
gradients for spiking neural networks", Sci. Rep. 11, 12829 (2021), written with p = dL/dV and q = dL/dI; the paper's
variables are lambda_V = -p / tau_mem and lambda_I = -q / tau_syn. Equations (5)-(7), (11) and (12) follow from (1) by
integration, in a form that holds for every pair of time constants; (13) discretises (1); (14) and (15) are (3) and (2) seen
from later.

The functions take floats or tensors of any one shape, elementwise: the torch solver calls them as they are, and the
numba kernels compile these same functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .checks import positive

ROUNDING = 1 - 1e-9  # so that no crossing is lost to rounding, whose relative error is near 1e-16
F2, F3, F4, F5, F6, F7, F8, F9, F10, F11 = (1.0 / math.factorial(k) for k in range(2, 12))
SERIES = tuple(1.0 / math.factorial(k + 2) for k in range(1, 15))  # 15 h_14/16! < 1e-17 for x, y down to -1/2


@dataclass(frozen=True)
class LIF:
    """Parameters of a leaky integrate-and-fire neuron with an exponential synapse.

    Args:
        tau_mem: membrane time constant in ms, > 0.
        tau_syn: synaptic time constant in ms, > 0; may equal ``tau_mem``.
        v_th: firing threshold above rest, > 0.

    Raises:
        TypeError: if a parameter is not a real number.
        ValueError: if a parameter is not positive and finite.

    >>> LIF(tau_mem=20.0, tau_syn=5.0, v_th=1.0)
    LIF(tau_mem=20.0, tau_syn=5.0, v_th=1.0)
    """

    tau_mem: float = 20.0
    tau_syn: float = 5.0
    v_th: float = 1.0

    def __post_init__(self) -> None:
        for name in ("tau_mem", "tau_syn", "v_th"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))

    @property
    def numbers(self) -> list[float]:
        """tau_mem, tau_syn and v_th."""
        return [self.tau_mem, self.tau_syn, self.v_th]

    @property
    def minimum_weight(self) -> float:
        """The smallest weight with which one input spike alone makes a neuron at rest fire."""
        rest, unit = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
        peak = peak_time(rest, unit, self.tau_mem, self.tau_syn).item()
        return self.v_th * math.exp(peak / self.tau_syn)  # V = I at the peak


def decay(dt, tau_mem, tau_syn):
    """Eq. (5): the coefficients (a, s, phi) of the flow over an interval of length ``dt`` >= 0.

    a and s are the decay of the membrane and of the synapse; phi is the postsynaptic potential of a unit input. With the
    slower of the two exponentials as a factor, expm1(z)/z is taken at z <= 0, where it neither cancels nor overflows:

        a = exp(-dt/tau_mem)    s = exp(-dt/tau_syn)
        phi = (dt/tau_mem) max(a, s) h(z),    h(z) = expm1(z)/z, h(0) = 1,    z = -dt |1/tau_syn - 1/tau_mem|
    """
    if tau_mem >= tau_syn:
        a, s, h = two_decays(dt, tau_mem, tau_syn)
    else:
        s, a, h = two_decays(dt, tau_syn, tau_mem)
    return a, s, dt / tau_mem * h


def two_decays(dt, slower, faster):
    """Eq. (5) by the order of the time constants: the decay by the slower one and by the faster one, and max(a, s) h(z)."""
    z = -dt * ((slower - faster) / slower / faster)  # the difference of the rates, without cancellation
    slow = torch.exp(-dt / slower)
    h = torch.where(z < 0.0, torch.expm1(z) / torch.where(z < 0.0, z, -1.0), 1.0)
    return slow, slow * torch.exp(z), slow * h


def decay_by_tau(dt, a, s, phi, tau_mem, tau_syn):
    """The derivatives of eq. (5) by the time constants, (da/dtau_mem, dphi/dtau_mem, ds/dtau_syn, dphi/dtau_syn), where
    (a, s, phi) = decay(dt, tau_mem, tau_syn).

    With the rates m = 1/tau_mem and r = 1/tau_syn, phi = m F and F = int_0^dt exp(-m (dt - u) - r u) du, so that
    dF/dr = -int u ... = (dt s - F)/(r - m), and dF/dm is the same with m and r, a and s exchanged. Where (r - m) dt is
    small the quotients lose digits; there a series replaces them. Either is good to 1e-12.
    """
    m, r = 1.0 / tau_mem, 1.0 / tau_syn
    f, z = phi / m, dt * ((tau_mem - tau_syn) / tau_mem / tau_syn)  # r - m, without cancellation
    near = abs(z) < 1e-3
    scale = dt / torch.where(near, 1.0, z)
    f_r = torch.where(near, -a * dt * dt * first_moment(z), (dt * s - f) * scale)
    f_m = torch.where(near, -s * dt * dt * first_moment(-z), (f - dt * a) * scale)
    return a * dt * m * m, -m * m * (f + m * f_m), s * dt * r * r, -r * r * m * f_r


def short_parts(dt, m, r):
    """Eq. (5) for an interval much shorter than both time constants, by the rates m = 1/tau_mem and r = 1/tau_syn: (c, f), from
    which a = c + d f, s = c - d f and phi = m dt f, with d = (r - m) dt/2.

    With k = (m + r) dt/2, c = exp(-k) cosh d and f = exp(-k) sinh(d)/d. For k <= 0.2 the series leave out less than 1e-17, and
    cost half of the functions that hold for every interval.
    """
    k, d = -0.5 * dt * (m + r), 0.5 * dt * (r - m)
    q = d * d
    e = F8 + k * (F9 + k * (F10 + k * F11))
    e = 1.0 + k * (1.0 + k * (F2 + k * (F3 + k * (F4 + k * (F5 + k * (F6 + k * (F7 + k * e)))))))
    cosh = 1.0 + q * (F2 + q * (F4 + q * (F6 + q * (F8 + q * F10))))
    return e * cosh, e * (1.0 + q * (F3 + q * (F5 + q * (F7 + q * (F9 + q * F11)))))


def short_phi_by_rates(dt, f, m, r):
    """(g, h) with dphi/dm = dt f - m g and dphi/dr = -m h, where f is that of ``short_parts``.

    g and h are dt^2/2 (f + l) and dt^2/2 (f - l), l = exp(-k) d/dd (sinh(d)/d), by the series of which nothing cancels.
    """
    d = 0.5 * dt * (r - m)
    q = d * d
    ratio = d * (2.0 * F3 + q * (4.0 * F5 + q * (6.0 * F7 + q * (8.0 * F9 + q * (10.0 * F11)))))
    e = f / (1.0 + q * (F3 + q * (F5 + q * (F7 + q * (F9 + q * F11)))))
    half = 0.5 * dt * dt
    return half * (f + e * ratio), half * (f - e * ratio)


def first_moment(z):
    """The integral of x exp(-z x) over x from 0 to 1, for abs(z) < 1e-3: the next term is below 1e-17."""
    return 1.0 / 2.0 - z * (1.0 / 3.0 - z * (1.0 / 8.0 - z * (1.0 / 30.0 - z / 144.0)))


def flow(v, i, a, s, phi):
    """Eq. (6): potential and current after the interval that ``decay`` describes."""
    return a * v + phi * i, s * i


def rewind(v, i, a, s, phi):
    """Eq. (6) solved for potential and current before the interval, from those after it."""
    i = i / s
    return (v - phi * i) / a, i


def euler_step(dt, tau_mem, tau_syn):
    """Eq. (13): the coefficients (a, s, phi) of one explicit Euler step, in the place of those of eq. (5)."""
    return 1.0 - dt / tau_mem, 1.0 - dt / tau_syn, dt / tau_mem


def integral(v, i, dt, phi, tau_mem, tau_syn):
    """Eq. (12): the integral of the potential over an interval of length ``dt`` that begins with (v, i)."""
    return i * integrated_psp(dt, phi, tau_mem, tau_syn) - v * tau_mem * torch.expm1(-dt / tau_mem)


def integrated_psp(dt, phi, tau_mem, tau_syn):
    """Eq. (12): the integral of phi from 0 to ``dt``, from tau_mem dphi/dt = s - phi.

    tau_syn (1 - s) - tau_mem phi = tau_syn (1 - a - phi), of which the first loses fewer digits where tau_syn is the longer
    time constant, the second elsewhere. Both lose digits where ``dt`` is short against both time constants. There, with
    x = -dt/tau_mem, y = -dt/tau_syn, and h_k the sum of all products of k factors x or y, it is the series

        dt^2/tau_mem sum_k h_k/(k + 2)!
    """
    m, r = dt / tau_mem, dt / tau_syn
    closed = torch.where(m > r, -torch.expm1(-r) * tau_syn - tau_mem * phi, (-torch.expm1(-m) - phi) * tau_syn)
    short = (m < 0.5) & (r < 0.5)
    x, y = torch.where(short, -m, 0.0), torch.where(short, -r, 0.0)
    total, products, power = 0.5, 1.0, 1.0
    for factor in SERIES:
        power = power * y
        products = products * x + power
        total = total + products * factor
    return torch.where(short, dt * m * total, closed)


def slope(i, v, tau_mem):
    """Eq. (1): the slope dV/dt of the potential."""
    return (i - v) / tau_mem


def crossing_slope(i, v_th, tau_mem, bias=0.0):
    """Eq. (1) as V crosses ``v_th``; a constant current ``bias`` moves rest and threshold together.

    Eq. (9) divides by it. Rounding can make the slope of a crossing that barely happens 0 or less; it then counts as
    1e-16 v_th/tau_mem, so that gradients stay finite.
    """
    rise, least = slope(i, v_th - bias, tau_mem), 1e-16 * v_th / tau_mem
    return torch.where(rise > least, rise, least)


def remaining_reset(since, v_th, tau_mem):
    """Eq. (14): by how much a spike still lowers V, the time ``since`` >= 0 after it: the jump (3), decayed by (6)."""
    return v_th * torch.exp(-since / tau_mem)


def least_after_crossing(a, phi, v_th):
    """Eq. (15): the least V with which a stretch without resets can end after V has crossed a ``v_th`` > 0 in it.

    V = I at a peak, by (1), so that the time x later V is a(x) + phi(x) times the peak, by (6). That falls with x. So over the
    whole stretch, V falls from a peak above v_th to no less than (a + phi) v_th.
    """
    return ROUNDING * (a + phi) * v_th


def peak_time(v, i, tau_mem, tau_syn):
    """Eq. (7): the time from now to the one maximum of V, for a potential that rises now (i > v, i > 0).

    t* = -tau_syn log(1 + x)/(1 - rho) with x = (1 - rho)(v - i)/i and rho = tau_syn/tau_mem; +inf where there is no maximum
    (x <= -1: V creeps up to rest). Near x = -1, 1 + x is taken as rho + (1 - rho) v/i, which does not cancel.
    """
    ahead, difference = (i - v) / i, (tau_mem - tau_syn) / tau_mem  # 1 - rho
    x, rest = -difference * ahead, tau_syn / tau_mem + difference * (v / i)
    log = torch.where(
        x > -0.5, torch.log1p(torch.where(x > -0.5, x, 0.0)), torch.log(torch.where(rest > 0.0, rest, 1.0))
    )
    time = tau_syn * ahead * torch.where(x == 0.0, 1.0, log / torch.where(x == 0.0, 1.0, x))
    return torch.where((rest > 0.0) & (time < math.inf), time, math.inf)


def adjoint_flow(p, q, a, s, phi):
    """Eq. (8): the adjoint variables p = dL/dV and q = dL/dI at the start of an interval, from those at its end."""
    return a * p, s * q + phi * p


def effect_time_gradient(grad_psp, grad_psc, psp, psc, tau_mem, tau_syn):
    """Eq. (11): dL/dt of a spike from the gradients of its effect (psp, psc) at the end of its step.

    The effect of a spike that came the time y before the end of its step is psp = phi(y), psc = exp(-y/tau_syn), by
    eq. (5); by eq. (1), dpsp/dt = -(psc - psp)/tau_mem and dpsc/dt = psc/tau_syn.
    """
    return grad_psc * psc / tau_syn - grad_psp * (psc - psp) / tau_mem


def arrival_offset(psp, psc, tau_mem, tau_syn):
    """Eq. (11) solved for y: how long before the end of the step one arrival, of whatever weight, raised (psp, psc).

    By eq. (5), psp/psc = phi/s = (exp(rate y) - 1)/(rate tau_mem) with rate = 1/tau_syn - 1/tau_mem; +inf where no y is long
    enough.
    """
    first = tau_mem * psp / psc
    x = (1.0 / tau_syn - 1.0 / tau_mem) * first
    inside = torch.where(x > -1.0, x, -0.5)
    ratio = torch.where(inside == 0.0, 1.0, torch.log1p(inside) / torch.where(inside == 0.0, 1.0, inside))
    return torch.where(x > -1.0, first * ratio, math.inf)


def spike_jump(p, grad, slope, v_reset, tau_mem):
    """Eq. (9): by how much p jumps, going backwards over an own spike, from p just after it and ``grad`` = dL/dt_k.

    ``v_reset`` is by how much the spike lowers V: v_th, by (3).
    """
    return -(grad - v_reset / tau_mem * p) / slope


def arrival_time_gradient(p, q, weight, tau_mem, tau_syn):
    """Eq. (10): dL/dt of an arriving spike through ``weight``; its dL/dw is q itself."""
    return weight * (q / tau_syn - p / tau_mem)
