"""Readouts that are sums over spikes: samples, weighted means, learnable time constants."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import assert_exact, random_network, random_spikes

from eventprop import LIF, EventDriven, LeakyReadout, Spikes, TimeStepped

T_END = 40.0
SOLVERS = [EventDriven(T_END), TimeStepped(T_END, 0.5)]
OPTIONS = {
    "samples": {"reduce": "samples", "times": [0.5, 7.0, 33.3, 40.0]},
    "weighted": {"reduce": "weighted", "tau_weight": 15.0},
    "mean": {"reduce": "mean"},
    "max": {"reduce": "max"},
}


def readout(neuron: LIF, options: dict, solver=SOLVERS[0], **more) -> LeakyReadout:
    torch.manual_seed(0)
    return LeakyReadout(4, 3, neuron=neuron, solver=solver, dtype=torch.float64, **options, **more)


def potential(module: LeakyReadout, spikes: Spikes, times: torch.Tensor) -> torch.Tensor:
    """[B, S, N] by eq. (5) as textbooks write it: psp(t) = tau_syn/(tau_mem - tau_syn) (exp(-t/tau_mem) - exp(-t/tau_syn))."""
    neuron = module.neuron
    since = times[:, None, None, None] - spikes.to_times()[None]  # [S, B, M, k]
    ago = since.clamp(min=0.0)
    if neuron.tau_mem == neuron.tau_syn:
        psp = ago / neuron.tau_mem * torch.exp(-ago / neuron.tau_mem)
    else:
        psp = torch.exp(-ago / neuron.tau_mem) - torch.exp(-ago / neuron.tau_syn)
        psp = psp * neuron.tau_syn / (neuron.tau_mem - neuron.tau_syn)
    return torch.where(since > 0, psp, 0.0).sum(3).transpose(0, 1) @ module.weight.t()


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_samples_are_the_potential(neuron, solver):
    torch.manual_seed(1)
    spikes, module = random_spikes(3, 4, window=50.0), readout(neuron, OPTIONS["samples"], solver)
    torch.testing.assert_close(module(spikes), potential(module, spikes, module.times), rtol=1e-12, atol=1e-13)


def test_the_weighted_mean_is_an_integral(neuron):
    """Against the midpoint rule, whose error falls as the square of its step: 1e-7 for 1e5 steps with kinks at the arrivals."""
    torch.manual_seed(1)
    spikes, module = random_spikes(2, 4), readout(neuron, OPTIONS["weighted"])
    steps = 100_000
    times = (torch.arange(steps, dtype=torch.float64) + 0.5) * (T_END / steps)
    weight = torch.exp(-times / 15.0)
    with torch.no_grad():
        expected = (potential(module, spikes, times) * weight[:, None]).sum(1) / weight.sum()
        torch.testing.assert_close(module(spikes), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_learnable_time_constants_begin_where_the_fixed_ones_are(neuron, reduce):
    torch.manual_seed(1)
    spikes = random_spikes(3, 4, window=50.0)
    fixed, learnable = readout(neuron, OPTIONS[reduce]), readout(neuron, OPTIONS[reduce], learn_tau=True)
    torch.testing.assert_close(learnable(spikes), fixed(spikes), rtol=1e-10, atol=1e-12)


def test_a_large_tau_weight_is_the_plain_mean():
    torch.manual_seed(1)
    spikes = random_spikes(3, 4)
    plain = readout(LIF(), OPTIONS["mean"])(spikes)
    weighted = readout(LIF(), {"reduce": "weighted", "tau_weight": 1e9})(spikes)
    torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=1e-9)  # 40 ms / 1e9 ms, and what cancels


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients(neuron, name, learn_tau):
    """Behind a layer that spikes, so that arrivals move with its weights; every ratio of time constants, equal ones too."""
    torch.manual_seed(2)
    spikes, hidden = random_spikes(2, 5), random_network([5, 4], neuron, SOLVERS[0])[0]
    module = readout(neuron, OPTIONS[name], learn_tau=learn_tau)

    def loss(*_):
        return module(hidden(spikes)).square().sum()

    parameters = list(module.parameters())
    assert len(parameters) == (3 if learn_tau else 1)
    assert_exact(loss, [hidden.weight, *parameters])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("learn_tau", [False, True])
def test_nothing_arrives(name, learn_tau):
    module = readout(LIF(), OPTIONS[name], learn_tau=learn_tau)
    nobody = Spikes.from_times(torch.full((2, 4), math.inf, dtype=torch.float64))
    output = module(nobody)
    assert output.shape == ((2, 4, 3) if name == "samples" else (2, 3))
    assert output.abs().max() == 0.0
    late = Spikes.from_times(torch.full((2, 4), 41.0, dtype=torch.float64))
    value = module(late)
    assert value.abs().max() == 0.0
    value.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", OPTIONS)
def test_autocast_does_not_reach_the_potential(name):
    module = readout(LIF(), OPTIONS[name], learn_tau=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(random_spikes(2, 4, dtype=torch.float32)).dtype == torch.float32


def test_the_configuration_of_a_layer_moves_with_it():
    module = LeakyReadout(4, 3, solver=SOLVERS[0], **OPTIONS["samples"]).double()
    assert module.times.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "median"}, "reduce must be one of 'max', 'mean', 'weighted', 'samples', got 'median'"),
        ({"reduce": "weighted"}, "tau_weight must be given with reduce='weighted', and only then; got None"),
        (
            {"reduce": "max", "tau_weight": 3.0},
            "tau_weight must be given with reduce='weighted', and only then; got 3.0",
        ),
        ({"reduce": "weighted", "tau_weight": -1.0}, "tau_weight must be positive and finite, got -1.0"),
        ({"reduce": "samples"}, "times must be given with reduce='samples'"),
        ({"reduce": "samples", "times": [[1.0]]}, "times must be a row of numbers, got shape [1, 1]"),
        ({"reduce": "samples", "times": [3.0, 41.0]}, "times must lie in [0, t_end=40.0], got [3.0, 41.0]"),
        ({"reduce": "samples", "times": [math.nan]}, "times must lie in [0, t_end=40.0], got [nan]"),
        (
            {**OPTIONS["weighted"], "solver": TimeStepped(T_END, 0.5, scheme="euler")},
            "solver must be EventDriven or TimeStepped for LeakyReadout, reduce",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LeakyReadout(4, 3, **{"solver": SOLVERS[0], **options})
