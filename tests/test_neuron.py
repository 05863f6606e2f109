"""The equations against independent integrations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize_scalar

from eventprop import LIF
from eventprop.core.autograd import elementwise_decay
from eventprop.core.neuron import decay, decay_by_tau, flow, integrated_psp, peak_time, short_parts, short_phi_by_rates


def double(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("dt", [1e-9, 0.3, 7.0, 60.0])
def test_flow_solves_the_differential_equations(neuron, dt):
    v, i = 0.4, 2.5
    a, s, phi = decay(double(dt), neuron.tau_mem, neuron.tau_syn)

    def derivative(_, state):
        return [(state[1] - state[0]) / neuron.tau_mem, -state[1] / neuron.tau_syn]

    exact = solve_ivp(derivative, (0, dt), [v, i], rtol=1e-12, atol=1e-14, method="DOP853").y[:, -1]
    # the integrator's own tolerance, accumulated over its steps
    assert np.allclose([float(x) for x in flow(v, i, a, s, phi)], exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("difference", [0.0, 1e-13, 1e-9, 1e-6, 1e-3, -1e-9, -1e-3])
def test_phi_is_continuous_in_the_time_constants(difference):
    """Near equal time constants the textbook difference of exponentials cancels; eq. (5) must not."""
    tau, dt = 10.0, 7.0
    rate = 1 / (tau + difference) - 1 / tau
    _, _, phi = decay(double(dt), tau, tau + difference)
    z = -dt * rate
    series = dt / tau * math.exp(-dt / tau) * (1 + z / 2 + z**2 / 6 + z**3 / 24)  # |z| < 1e-4: the next term is 1e-18
    assert float(phi) == pytest.approx(series, rel=1e-14)


@pytest.mark.parametrize(("tau_mem", "tau_syn"), [(20.0, 5.0), (5.0, 20.0), (10.0, 10.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decay_neither_overflows_nor_underflows_to_nan(tau_mem, tau_syn, dtype):
    for dt in (0.0, 1e-30, 1e3, 1e6):
        values = decay(torch.tensor(dt, dtype=dtype), tau_mem, tau_syn)
        assert all(0.0 <= float(x) <= 1.0 for x in values)


@pytest.mark.parametrize(("v", "i"), [(0.0, 1.0), (-0.3, 2.0), (0.9, 1.0), (-1e-3, 40.0)])
def test_peak_time_is_the_maximum(neuron, v, i):
    def minus_v(dt):
        return -float(flow(v, i, *decay(double(dt), neuron.tau_mem, neuron.tau_syn))[0])

    t_peak = float(peak_time(double(v), double(i), neuron.tau_mem, neuron.tau_syn))
    found = minimize_scalar(minus_v, bounds=(0, 200), method="bounded", options={"xatol": 1e-9})
    assert t_peak == pytest.approx(found.x, abs=1e-5)  # a minimiser knows the place to the square root of rounding
    assert -minus_v(t_peak) >= -found.fun * (1.0 - 1e-15)  # rounding of V


def test_a_potential_that_creeps_up_to_rest_has_no_peak():
    assert math.isinf(peak_time(double(-1.0), double(1e-9), 20.0, 5.0))


def test_minimum_weight_just_reaches_the_threshold(neuron):
    dt = torch.linspace(0, 100, 100_001, dtype=torch.float64)
    peak = neuron.minimum_weight * float(decay(dt, neuron.tau_mem, neuron.tau_syn)[2].max())
    assert peak == pytest.approx(neuron.v_th, rel=1e-8)  # the grid of 1 us misses the peak by (1e-3/10)^2 / 8


@pytest.mark.parametrize("dt", [0.0, 1e-6, 0.3, 7.0, 60.0])
def test_integrated_psp_is_the_integral_of_phi(neuron, dt):
    expected, _ = quad(lambda x: float(decay(double(x), neuron.tau_mem, neuron.tau_syn)[2]), 0, dt, epsabs=1e-13)
    phi = decay(double(dt), neuron.tau_mem, neuron.tau_syn)[2]
    assert float(integrated_psp(double(dt), phi, neuron.tau_mem, neuron.tau_syn)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["tau_mem", "tau_syn", "v_th"])
def test_parameters_are_checked_and_frozen(name):
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=name):
            LIF(**{name: bad})
    for bad in ("5", None, True):
        with pytest.raises(TypeError, match=name):
            LIF(**{name: bad})
    with pytest.raises(AttributeError):
        setattr(LIF(), name, 1.0)


def test_the_exponentials_of_the_kernels():
    """Against the C library's, over all sizes of the argument; in a loop, as the kernels use them."""
    import numba

    from eventprop.solvers.compilation.exponential import exp, expm1

    @numba.njit
    def both(x, e, m):
        for k in range(len(x)):
            e[k], m[k] = exp(x[k]), expm1(x[k])

    x = -np.concatenate(
        [np.logspace(-300, 2.8, 20_000), np.linspace(0.0, 40.0, 20_001), np.log(2.0) * np.arange(0.5, 50)]
    )
    e, m = np.empty_like(x), np.empty_like(x)
    both(x, e, m)
    # one unit in the last place of each, 2.2e-16, from either side
    assert np.allclose(e, [math.exp(v) for v in x], rtol=4.5e-16, atol=0)
    assert np.allclose(m, [math.expm1(v) for v in x], rtol=4.5e-16, atol=0)
    x = np.array([0.0, -0.0, -707.9, -708.1, -1e4, -math.inf, math.nan])
    e, m = np.empty_like(x), np.empty_like(x)
    both(x, e, m)
    # subnormal results, below 1e-307, are 0
    assert np.allclose(e, [1.0, 1.0, math.exp(-707.9), 0.0, 0.0, 0.0, math.nan], rtol=4.5e-16, atol=0, equal_nan=True)
    assert np.array_equal(m, [0.0, 0.0, -1.0, -1.0, -1.0, -1.0, math.nan], equal_nan=True)


def test_short_intervals_by_their_series():
    """Up to (m + r) dt = 0.4, equal rates among them; digits are lost where nearly equal numbers are subtracted."""
    generator = torch.Generator().manual_seed(0)
    m, r = (10.0 ** (-2.0 * torch.rand(1000, generator=generator, dtype=torch.float64)) for _ in range(2))
    r = torch.where(torch.arange(1000) % 5 == 0, m, r)
    dt = 0.4 / (m + r) * torch.rand(1000, generator=generator, dtype=torch.float64)
    a, s, phi = elementwise_decay(dt, 1.0 / m, 1.0 / r)
    _, phi_mem, _, phi_syn = decay_by_tau(dt, a, s, phi, 1.0 / m, 1.0 / r)
    c, f = short_parts(dt, m, r)
    by_m, by_r = short_phi_by_rates(dt, f, m, r)
    half = 0.5 * (r - m) * dt * f
    found = c + half, c - half, m * dt * f, -m * m * (dt * f - m * by_m), r * r * m * by_r
    for value, expected in zip(found, (a, s, phi, phi_mem, phi_syn), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)
