"""Neurons with parameters of their own, and synapses with delays of their own, on a grid."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import assert_exact_gradients, diverse, learnable, random_layer, random_spikes

from eventprop import (
    LIF,
    DelayedSpikingLinear,
    EventDriven,
    LearnableLIF,
    Spikes,
    SpikingLinear,
    TimeStepped,
)
from surrogate_baseline.solver import SurrogateTimeStepped


def layer(neuron, solver, kind=SpikingLinear, neurons: int = 4, **options) -> SpikingLinear:
    """Neurons that spike several times; always the same."""
    torch.manual_seed(0)
    return random_layer(5, neurons, solver, neuron, kind, **options)


def arrivals() -> Spikes:
    torch.manual_seed(10)  # the gradient of a shared parameter is one number, which must not be nearly 0 by chance
    return random_spikes(2, 5, per_neuron=1)


@pytest.mark.parametrize("dt", [2.0, 0.5])
def test_plain_parameters_give_what_the_plain_layer_gives(neuron, dt):
    """In spikes, slopes and gradients, with a saturated neuron, and inhibition that lies within a step."""
    solver = TimeStepped(40.0, dt)
    modules = [layer(kind, solver) for kind in (neuron, LearnableLIF(4, neuron, dtype=torch.float64))]
    for module in modules:
        module.weight.data[0] = 30.0
        module.weight.data[1] = torch.tensor([20.0, -20.0, 20.0, -20.0, 5.0])
    spikes = random_spikes(4, 5)
    gradients, outputs = [], [module(spikes) for module in modules]
    for module, output in zip(modules, outputs, strict=True):
        time = output.time[output.index >= 0]
        gradients.append(torch.autograd.grad((0.1 * time).sin().sum(), module.weight)[0])
    assert torch.equal(outputs[0].index, outputs[1].index)
    # rounding, divided by slopes; in slopes and gradients once more
    torch.testing.assert_close(outputs[0].time, outputs[1].time, rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs[0].slope, outputs[1].slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("dt", "refractory", "shared"),
    [(2.0, 0.0, False), (2.0, 0.7, False), (2.0, 3.0, False), (2.0, 0.7, True), (0.6, 0.7, False)],
)
def test_gradients_are_exact(dt, refractory, shared):
    assert_exact_gradients(layer(learnable(shared, refractory), TimeStepped(24.0, dt)), arrivals())


@pytest.mark.parametrize("refractory", [0.0, 3.0])
def test_spikes_and_gradients_approach_those_of_the_event_driven_solver(refractory):
    """The gradient's error falls at least in proportion to dt: of steps an eighth as long, it must be less than a quarter. So
    long steps that many of them have arrivals at several times, which is where a grid errs."""
    torch.manual_seed(3)
    found = []
    spikes = random_spikes(8, 5)
    for solver in (EventDriven(40.0), TimeStepped(40.0, 2.0), TimeStepped(40.0, 0.25)):
        module = layer(diverse(4, refractory=refractory), solver)
        first = module(spikes).first_spike_time()
        first[first.isfinite()].sum().backward()
        gradient = torch.cat([x.grad.flatten() for x in module.parameters()])
        found.append((first.detach(), gradient))
    (time, gradient), *others = found
    assert time.isfinite().sum() > 20
    assert all(torch.equal(time.isfinite(), x.isfinite()) for x, _ in others)
    errors = [torch.where(time.isfinite(), x - time, 0.0).abs().mean() for x, _ in others]
    assert errors[1] < 1e-3
    errors = [((x - gradient).norm() / gradient.norm()) for _, x in others]
    assert errors[1] < min(0.25 * errors[0], 0.01)


@pytest.mark.parametrize("refractory", [0.0, 3.0])
def test_one_time_of_arrival_in_each_step_leaves_no_error(refractory):
    """Spike times and the gradients of all parameters, as of the event-driven solver; peaks within steps among them."""
    torch.manual_seed(1)
    time = 2.0 * (torch.arange(10) + torch.rand(8, 10, dtype=torch.float64))
    spikes = Spikes(time, torch.randint(5, (8, 10)), 5)
    found = []
    for solver in (EventDriven(40.0), TimeStepped(40.0, 2.0)):
        module = layer(diverse(4, refractory=refractory), solver)
        module.weight.data.copy_(5.0 * torch.linspace(-1.0, 2.0, 20, dtype=torch.float64).sin().reshape(4, 5))
        times = module(spikes).to_times()
        (0.1 * times[times.isfinite()]).sin().sum().backward()
        found.append((times.detach(), torch.cat([x.grad.flatten() for x in module.parameters()])))
    (times, gradient), (grid_times, grid_gradient) = found
    assert times.isfinite().sum() > 50
    torch.testing.assert_close(grid_times, times, rtol=0, atol=1e-9)  # rounding, divided by slopes
    assert (grid_gradient - gradient).norm() <= 1e-7 * gradient.norm()  # once more


def test_constant_current_alone_leaves_no_error():
    """Nothing arrives, so the grid is as exact as the closed form: V = 2 (1 - exp(-t/20)) reaches 1 after 20 ln 2."""
    module = layer(LearnableLIF(1, bias=2.0, refractory=5.0, dtype=torch.float64), TimeStepped(40.0, 1.6), neurons=1)
    silent = Spikes(torch.zeros(1, 0, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.long), 5)
    rise = 20.0 * torch.tensor(2.0, dtype=torch.float64).log()
    expected = torch.stack([rise, 2.0 * rise + 5.0])
    torch.testing.assert_close(module(silent).time[0], expected, rtol=1e-14, atol=0)  # rounding


def test_a_short_refractory_period_is_nearly_none():
    """Without inhibition, which lifts V above the threshold in the step before it comes."""
    spikes, found = random_spikes(8, 5), []
    for refractory in (0.0, 1e-9):
        module = layer(diverse(4, refractory=refractory), TimeStepped(40.0, 1.0))
        module.weight.data.abs_()
        found.append(module(spikes).to_times())
    # 1e-9 ms for each spike, divided by slopes
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("refractory", [0.7, 3.0])
def test_no_two_spikes_within_the_refractory_period(refractory):
    module = layer(LearnableLIF(4, refractory=refractory, dtype=torch.float64), TimeStepped(40.0, 2.0))
    module.weight.data.abs_().mul_(20.0)
    times = module(random_spikes(8, 5)).to_times()
    gaps = times.diff(dim=2)
    gaps = gaps[gaps.isfinite()]
    assert len(gaps) > 100
    assert gaps.min() >= refractory * (1 - 1e-12)  # rounding


SOLVERS = [EventDriven(24.0), TimeStepped(24.0, 2.0)]
NEURONS = [LIF, lambda: diverse(4), lambda: diverse(4, refractory=3.0)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("neuron", NEURONS, ids=["LIF", "own", "refractory"])
def test_every_synapse_has_its_own_delay(solver, neuron):
    """Neuron by neuron, against undelayed layers whose input was delayed by hand."""
    module, spikes = layer(neuron(), solver, DelayedSpikingLinear, mean_delay=3.0), random_spikes(5, 5)
    output = module(spikes)
    Spikes(output.time, output.index, output.num_neurons, output.slope)  # checks order, padding and range
    for n in range(4):
        by_hand = Spikes.from_times((spikes.to_times() + module.delay[n, :, None]).detach())
        single = SpikingLinear(5, 4, neuron=module.neuron, solver=solver, dtype=torch.float64)
        single.weight.data.copy_(module.weight)
        expected = single(by_hand).to_times()[:, n]
        # rounding, divided by slopes
        torch.testing.assert_close(output.to_times(expected.shape[1])[:, n], expected, rtol=0, atol=1e-10)
    assert output.count().sum() > 20


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("neuron", NEURONS, ids=["LIF", "own", "refractory"])
def test_gradients_of_synaptic_delays(solver, neuron):
    assert_exact_gradients(layer(neuron(), solver, DelayedSpikingLinear, mean_delay=3.0), arrivals())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_silence_stays_silent_and_no_sample_gives_none(solver):
    """And both have gradients, which are 0."""
    silent = Spikes(torch.zeros(2, 0, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.long), 5)
    for neuron in (LIF(), LearnableLIF(4, refractory=1.0, dtype=torch.float64)):
        for kind in (SpikingLinear, DelayedSpikingLinear):
            for spikes in (silent, random_spikes(0, 5)):
                module = layer(neuron, solver, kind)
                output = module(spikes)
                assert output.count().shape == (spikes.batch_size, 4)
                assert output.count().sum() == 0
                output.first_spike_time().clamp(max=1.0).sum().backward()
                assert module.weight.grad is not None
                assert all(not x.grad.any() for x in module.parameters() if x.grad is not None)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_parameters_that_are_not_finite_are_named(solver):
    module = layer(LearnableLIF(4, dtype=torch.float64), solver, DelayedSpikingLinear)
    module.raw_delay.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="delay must be finite"):
        module(random_spikes(2, 5))
    module = layer(LearnableLIF(4, dtype=torch.float64), solver)
    for value in (torch.nan, torch.inf, -torch.inf):
        module.neuron.log_v_th.data[0] = value
        with pytest.raises(ValueError, match="SpikingLinear.neuron.log_v_th must be finite"):
            module(random_spikes(2, 5))


def test_float32_follows_float64():
    module, spikes = layer(diverse(4, refractory=1.0), TimeStepped(40.0, 1.0)), random_spikes(8, 5)
    double = module(spikes)
    single = module.float()(spikes.to(torch.float32))
    assert single.dtype == torch.float32
    assert torch.equal(double.index, single.index)
    kept = double.index >= 0
    assert (single.time - double.time)[kept].abs().max() < 1e-3  # promise P6


def test_grazing_policies_change_the_slope():
    """One spike: its gradient is in proportion to 1/slope."""
    found = {}
    for grazing in ("raw", "clamp", "saturate", "drop"):
        solver = TimeStepped(40.0, 1.0, grazing=grazing, min_slope=0.5)
        module = layer(LearnableLIF(1, dtype=torch.float64), solver, neurons=1)
        module.weight.data.fill_(8.0)
        output = module(Spikes.from_times(torch.tensor([[0.5] + 4 * [torch.inf]], dtype=torch.float64)))
        output.time[0, 0].backward()
        slope, found[grazing] = output.slope[0, 0], module.weight.grad[0, 0]
    assert 0.1 < slope < 0.5
    factors = {"clamp": 0.5, "saturate": (slope**2 + 0.25).sqrt(), "drop": torch.inf}
    for grazing, effective in factors.items():
        torch.testing.assert_close(found[grazing], found["raw"] * slope / effective, rtol=1e-12, atol=0)  # rounding


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: layer(diverse(4), TimeStepped(40.0, 1.0, scheme="euler")),
            ValueError,
            "solver must be EventDriven or TimeStepped for SpikingLinear, of LearnableLIF, got TimeStepped(",
        ),
        (
            lambda: layer(LIF(), TimeStepped(40.0, 1.0, scheme="euler"), DelayedSpikingLinear),
            ValueError,
            "solver must be EventDriven or TimeStepped for DelayedSpikingLinear, got TimeStepped(",
        ),
        (
            lambda: layer(LearnableLIF(4, LIF(20.0, 0.01), dtype=torch.float64), TimeStepped(40.0, 1.0)),
            ValueError,
            "dt must be at most 0.5",
        ),
        (
            lambda: layer(diverse(4), SurrogateTimeStepped(40.0, 1.0)),
            TypeError,
            "solver must be EventDriven or TimeStepped for SpikingLinear, of LearnableLIF, got TimeStepped(",
        ),
    ],
)
def test_what_is_not_offered_is_named(build, error, message):
    module = build()
    with pytest.raises(error, match=re.escape(message)):
        module(random_spikes(2, 5))


def test_too_many_spikes_are_an_error(monkeypatch):
    monkeypatch.setattr("eventprop.solvers.tape.MAX_SPIKES_PER_SAMPLE", 100)
    module = layer(diverse(4), TimeStepped(40.0, 1.0))
    module.weight.data.abs_().mul_(100.0)
    with pytest.raises(ValueError, match="more than 100 spikes"):
        module(random_spikes(2, 5))
    module.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="SpikingLinear.weight must be finite"):
        module(random_spikes(2, 5))
