"""Learnable delays."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import assert_exact, random_layer, random_network, random_spikes, smooth

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
from eventprop.solvers.event_driven.kernels import delays, delays_apart
from eventprop.solvers.problem import Dense, Problem

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


def dense(seed: int, scale: float, longest: float, dtype=torch.float64) -> tuple[Spikes, torch.Tensor, torch.Tensor]:
    """Arrivals, some before 0 and many at equal times, and the weights and delays [7, 9], of which some are 0 or equal."""
    torch.manual_seed(seed)
    time = torch.rand(3, 40, dtype=dtype).mul(70.0).sub(10.0).sort(1)[0]
    time[1] = time[1].round()
    weight = torch.randn(7, 9, dtype=dtype).add(0.3).mul(scale)
    delay = torch.rand(7, 9, dtype=dtype).mul(longest)
    delay[:3] = delay[:3].round()
    return Spikes(time, torch.randint(9, (3, 40)), 9), weight, delay


def solved(solve, neuron: LIF, spikes: Spikes, weight: torch.Tensor, delay: torch.Tensor) -> tuple[Spikes, list]:
    """The spikes, and the gradients by arrival times, weights and delays."""
    inputs = [x.clone().requires_grad_() for x in (spikes.time, weight, delay)]
    received = Spikes._trusted(inputs[0], spikes.index, spikes.shape)
    found = solve(Problem(Dense(*inputs[1:]), neuron), received)
    return found, list(torch.autograd.grad(smooth(found), inputs))


@pytest.mark.parametrize("longest", [0.5, 4.0, 90.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_blocks_of_time_give_what_every_neuron_alone_gives(neuron, scale, longest):
    """Up to tens of spikes in a block, and many within the longest delay."""
    solver, spikes, weight, delay = EventDriven(60.0), *dense(0, scale * neuron.minimum_weight, longest)
    found, gradients = solved(solver.spikes_of, neuron, spikes, weight, delay)
    expected, by_hand = solved(
        lambda problem, arrivals: solver._delayed_apart(problem, arrivals, *problem.synapses),
        neuron,
        spikes,
        weight,
        delay,
    )
    assert found.count().sum() > 10
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(
        found.time, expected.time, rtol=0, atol=1e-11
    )  # rounding, divided by slopes, of many spikes
    for x, y in zip(gradients, by_hand, strict=True):
        assert (x - y).norm() <= 1e-9 * y.norm()  # rounding, divided by slopes, again and again


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_too_many_blocks_are_none(scale, monkeypatch):
    """Delays beyond all proportion to the time constants: every neuron is walked from delivery to delivery."""
    solver, neuron, (spikes, weight, delay) = EventDriven(60.0), LIF(), dense(1, scale * LIF().minimum_weight, 10.0)
    expected, by_blocks = solved(solver.spikes_of, neuron, spikes, weight, delay)
    monkeypatch.setattr(delays, "MOST_BLOCKS", 3)
    found, gradients = solved(solver.spikes_of, neuron, spikes, weight, delay)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.time, expected.time, rtol=0, atol=1e-11)  # as above
    for x, y in zip(gradients, by_blocks, strict=True):
        assert (x - y).norm() <= 1e-9 * y.norm()


def test_without_delay_it_is_the_plain_layer():
    """Inhibition soon after excitation, so that V crosses the threshold within a block and ends below it."""
    torch.manual_seed(2)
    time = torch.rand(50, 400, dtype=torch.float64).mul(100.0).sort(1)[0]
    spikes = Spikes(time, torch.randint(9, (50, 400)), 9)
    weight = torch.randn(7, 9, dtype=torch.float64).mul(20.0)
    solver = EventDriven(100.0)
    found = solver.spikes_of(Problem(Dense(weight, torch.zeros_like(weight)), LIF()), spikes)
    expected = solver.spikes(spikes, weight, LIF())
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.time, expected.time, rtol=0, atol=1e-10)  # rounding, divided by slopes


def test_a_long_silence_is_one_step():
    """And the spikes on both sides of it are those of the walk from delivery to delivery."""
    weight, delay = torch.tensor([[8.0, 30.0]], dtype=torch.float64), torch.tensor([[0.2, 7.3]], dtype=torch.float64)
    spikes = Spikes.from_times(torch.tensor([[[-1e9, 5.0], [-1e9, 1e9]]], dtype=torch.float64))
    neurons = torch.tensor([[20.0, 5.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    received = spikes.time, spikes.index, weight, delay, neurons
    found = delays.forward(*received, delays.grid_of(spikes.time, delay, neurons, 2e9, False), 2e9)[0]
    expected = delays_apart.forward(*received, 2e9, False)[0]
    assert found.time.shape[1] == expected.time.shape[1] > 4
    torch.testing.assert_close(found.time, expected.time, rtol=1e-15, atol=1e-12)


def test_a_batch_equals_its_samples_alone():
    solver, (spikes, weight, delay) = EventDriven(60.0), dense(3, LIF().minimum_weight, 20.0)
    problem = Problem(Dense(weight, delay), LIF())
    together = solver.spikes_of(problem, spikes)
    for b in range(len(spikes)):
        assert solver.spikes_of(problem, spikes[b : b + 1]).equal(together[b : b + 1])


def test_times_of_single_precision_stay_near_those_of_double_precision():
    problem, found = None, []
    for dtype in (torch.float32, torch.float64):
        spikes, weight, delay = dense(4, LIF().minimum_weight, 20.0, torch.float32)
        problem = Problem(Dense(weight.to(dtype), delay.to(dtype)), LIF())
        found.append(EventDriven(60.0).spikes_of(problem, spikes.to(dtype)).time.double())
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)  # promise P6


def test_delays_below_0_are_refused():
    spikes, weight, delay = dense(5, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"delay must be finite and lie in \[0, inf\], but"):
        EventDriven(60.0).spikes_of(Problem(Dense(weight, delay - 0.5), LIF()), spikes)


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
