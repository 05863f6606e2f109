"""Learnable delays."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import assert_exact, random_layer, random_network, random_spikes

from eventprop import (
    LIF,
    Delay,
    DelayedSpikingLinear,
    EventDriven,
    GridSpikes,
    Spikes,
    SpikingLinear,
    TimeStepped,
)

SOLVERS = [EventDriven(40.0), TimeStepped(40.0, 0.5)]


def layer(solver, inputs: int = 6, neurons: int = 4) -> SpikingLinear:
    return random_network([inputs, neurons], LIF(), solver)[0]


def delayed_layer() -> DelayedSpikingLinear:
    torch.manual_seed(0)
    return random_layer(6, 4, EventDriven(40.0), kind=DelayedSpikingLinear, mean_delay=3.0)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_gradients_of_delays_in_front_and_behind(solver):
    torch.manual_seed(0)
    front, behind = Delay(6, 3.0, dtype=torch.float64), Delay(4, 3.0, dtype=torch.float64)
    network = torch.nn.Sequential(front, layer(solver), behind, layer(solver, 4, 3))
    spikes = random_spikes(3, 6)

    def loss(*_):
        output = network(spikes)
        return output.time[output.index >= 0].square().sum()

    assert_exact(loss, [front.raw_delay, behind.raw_delay, network[1].weight])


def test_a_dendritic_delay_is_a_delay_of_the_output():
    torch.manual_seed(0)
    one = layer(EventDriven(1000.0), 6, 1)
    delay = torch.nn.functional.softplus(torch.tensor(1.5)).item()
    front, behind = Delay(6, dtype=torch.float64), Delay(1, dtype=torch.float64)
    front.raw_delay.data.fill_(1.5)
    behind.raw_delay.data.fill_(1.5)
    spikes = random_spikes(5, 6)
    plain, before, after = one(spikes), one(front(spikes)), behind(one(spikes))
    assert torch.allclose(before.time, after.time, rtol=1e-12)  # rounding
    assert torch.allclose(plain.time + delay, after.time, rtol=1e-7)  # softplus above in float32


def test_initial_delays_are_positive_with_the_mean_asked_for():
    torch.manual_seed(0)
    delay = Delay(10_000, 4.0).delay
    assert delay.min() > 0
    assert delay.max() < 8.001
    assert abs(delay.mean() - 4.0) < 5 * 8.0 / (12 * 10_000) ** 0.5  # five standard errors of a uniform number's mean


def test_spikes_that_leave_the_window_of_a_grid_are_dropped():
    grid = GridSpikes.from_spikes(Spikes.from_times(torch.tensor([[1.0, 39.5]])), dt=1.0, t_end=40.0)
    delay = Delay(2)
    delay.raw_delay.data.fill_(1.0)
    moved = delay(grid)
    assert isinstance(moved, GridSpikes)
    assert moved.count().tolist() == [[1, 0]]


def test_silence_stays_silent():
    silent = Spikes(torch.zeros(2, 0, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.long), 6)
    assert delayed_layer()(silent).count().sum() == 0
    assert Delay(6, dtype=torch.float64)(silent).count().sum() == 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Delay(0), ValueError, "num_neurons must be >= 1, got 0"),
        (lambda: Delay(3, -1.0), ValueError, "mean must be positive and finite, got -1.0"),
        (lambda: Delay(3)(random_spikes(1, 4)), ValueError, "num_neurons=4 but there are 3 delays"),
        (lambda: delayed_layer()(random_spikes(1, 5)), ValueError, "num_neurons=5 but weight [4, 6] takes 6"),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
