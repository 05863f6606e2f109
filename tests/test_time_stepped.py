"""The solver on a time grid: every test that can runs on both backends."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_exact, convergence_network, random_network, random_spikes, smooth
from torch import nn
from torch.nn import functional as F

from eventprop import (
    LIF,
    EventDriven,
    GridSpikes,
    LeakyReadout,
    Spikes,
    SpikingLayer,
    SpikingLinear,
    TimeStepped,
    check_gradients,
    first_spike_cross_entropy,
    study_convergence,
)
from eventprop.core.neuron import decay
from eventprop.solvers import tape
from eventprop.solvers.time_stepped.functions import spikes_of
from eventprop.solvers.time_stepped.reference import KINDS

DTS = [2.0, 1.0, 0.5, 0.1]


def conv_network(neuron: LIF, solver: TimeStepped) -> nn.Sequential:
    """Two convolutions with pooling, and neurons that spike several times; 1 x 6 x 6 -> 2 x 4 x 4 -> 3."""
    first = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 2, 3, bias=False))
    second = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 2, bias=False), nn.Flatten())
    layers = [SpikingLayer(part.double(), neuron=neuron, solver=solver) for part in (first, second)]
    charge = neuron.v_th * neuron.tau_mem / neuron.tau_syn / neuron.minimum_weight
    for layer in layers:
        layer.reset_parameters(8.0 * charge, charge)
    return nn.Sequential(*layers)


# ---- gradients -------------------------------------------------------------------------------------------------------


def assert_gradcheck(network: nn.Sequential, times: torch.Tensor) -> None:
    """Neurons spike more than once, and the gradients of weights and times pass torch's own checker. Tolerances: central
    differences of step 1e-6 of losses of order 10 are good to 1e-6, or to 1e-5 of a large gradient near a grazing spike."""
    assert network(Spikes.from_times(times)).count().max() > 1
    inputs = [times, *network.parameters()]
    assert torch.autograd.gradcheck(
        lambda times, *_: smooth(network(Spikes.from_times(times))), inputs, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dt", DTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_gradcheck_of_linear_synapses(neuron, dt, depth):
    """torch's own checker, for weights and input times; several spikes per neuron."""
    torch.manual_seed(40 + depth)
    sizes = [4, 5, 3][-depth - 1 :]
    network = random_network(sizes, neuron, TimeStepped(40.0, dt))
    times = (20 * torch.rand(2, sizes[0], 2, dtype=torch.float64)).requires_grad_()
    assert_gradcheck(network, times)


@pytest.mark.parametrize("dt", DTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_gradcheck_of_convolutions(neuron, dt, depth):
    torch.manual_seed(50 + depth)
    network = conv_network(neuron, TimeStepped(40.0, dt))[:depth]
    times = (20 * torch.rand(1, 36, dtype=torch.float64)).requires_grad_()
    assert_gradcheck(network, times)


@pytest.mark.parametrize("loss", ["first_spike", "max", "mean"])
@pytest.mark.parametrize("dt", DTS)
def test_gradients_are_exact_for_every_loss(dt, loss):
    torch.manual_seed(60)
    network = random_network([4, 5, 3], LIF(), TimeStepped(40.0, dt), None if loss == "first_spike" else loss)
    target = torch.tensor([0, 2])

    def fn(times, *_):
        output = network(Spikes.from_times(times))
        return first_spike_cross_entropy(output, target) if loss == "first_spike" else F.cross_entropy(output, target)

    assert_exact(fn, [20 * torch.rand(2, 4, 2, dtype=torch.float64), *network.parameters()])


def test_gradients_are_exact_where_neurons_are_saturated():
    """Hundreds of spikes per neuron and a dozen per step, and inhibition that comes while they fire."""
    torch.manual_seed(3)
    layer = SpikingLinear(4, 3, solver=TimeStepped(40.0, 2.0), dtype=torch.float64)
    layer.weight.data.normal_(100.0, 100.0)
    times = (20 * torch.rand(2, 4, 2, dtype=torch.float64)).requires_grad_()
    train = layer(Spikes.from_times(times))
    assert train.count().max() > 100
    assert train.to_raster(2.0, 40.0).max() > 10
    assert_exact(lambda times, *_: smooth(layer(Spikes.from_times(times))), [times, layer.weight])
    gradients = torch.autograd.grad(smooth(layer(Spikes.from_times(times))), [times, layer.weight])
    layer.solver = TimeStepped(40.0, 2.0, backend="torch")
    reference_gradients = torch.autograd.grad(smooth(layer(Spikes.from_times(times))), [times, layer.weight])
    for found, expected in zip(gradients, reference_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # rounding, carried through 100 spikes


@pytest.mark.parametrize("dt", [2.0, 8.0])
def test_gradients_are_exact_for_spikes_of_every_kind(backend, dt):
    """Before, after and between the arrivals that stand for all of a step, where inhibition and excitation share steps, and
    where a step is longer than a time constant."""
    torch.manual_seed(11)
    solver = TimeStepped(40.0, dt, backend=backend)
    layer = SpikingLinear(12, 4, solver=solver, dtype=torch.float64)
    layer.weight.data.normal_(3.0, 8.0)
    times = (30 * torch.rand(2, 12, 2, dtype=torch.float64)).requires_grad_()
    steps, drive = solver.rule.drive(Spikes.from_times(times.detach()), layer.weight.detach(), layer.neuron, solver)
    after = spikes_of(drive, steps, layer.neuron, solver).after
    assert torch.bincount(after[after >= 0] % KINDS, minlength=KINDS).min() > 3
    assert_exact(lambda times, *_: smooth(layer(Spikes.from_times(times))), [times, layer.weight])


# ---- the forward pass ------------------------------------------------------------------------------------------------


def one_time_per_step(batch: int, neurons: int, dt: float, together: int, on_grid: bool) -> Spikes:
    """``together`` arrivals in each step of [0, 20 ms], all of them at one time within the step, or as it begins."""
    steps = round(20.0 / dt)
    place = torch.zeros(batch, steps, 1) if on_grid else torch.rand(batch, steps, 1)
    time = (dt * (torch.arange(steps)[:, None] + place.double())).expand(-1, -1, together)
    index = torch.rand(batch, steps, neurons).argsort(2)[:, :, :together]
    return Spikes(time.flatten(1), index.flatten(1), neurons)


@pytest.mark.parametrize("dt", [2.0, 0.5])
@pytest.mark.parametrize("on_grid", [True, False])
def test_one_time_of_arrival_in_each_step_leaves_no_error(neuron, backend, dt, on_grid):
    """Spike times and gradients are those of the event-driven solver: peaks within steps, inhibition, and several spikes of a
    neuron in one step among them."""
    torch.manual_seed(5)
    arrivals = one_time_per_step(4, 8, dt, 3, on_grid)
    weight = neuron.minimum_weight * min(dt, 1.0) * torch.randn(6, 8, dtype=torch.float64).requires_grad_()
    time = arrivals.time.clone().requires_grad_()
    arrivals = Spikes._trusted(time, arrivals.index, (8,))
    found, expected = (
        solver.spikes(arrivals, weight, neuron)
        for solver in (TimeStepped(40.0, dt, backend=backend), EventDriven(40.0))
    )
    assert expected.count().sum() > 50
    assert torch.equal(found.count(), expected.count())
    torch.testing.assert_close(found.to_times(), expected.to_times(), rtol=0, atol=1e-9)  # rounding, divided by slopes
    gradients = [torch.autograd.grad(smooth(train), (weight, time)) for train in (found, expected)]
    for mine, exact in zip(*gradients, strict=True):
        assert (mine - exact).norm() <= 1e-7 * exact.norm()  # rounding, divided by slopes once more


def test_no_peak_within_a_step_is_missed(backend):
    """As for the event-driven solver: peaks at 1.0001 v_th, wherever they lie."""
    arrivals = Spikes.from_times(10.0 * torch.rand(10_000, 1, dtype=torch.float64))
    for factor, spikes in ((1.0001, 1), (0.9999, 0)):
        weight = torch.tensor([[factor * LIF().minimum_weight]], dtype=torch.float64)
        train = TimeStepped(40.0, 2.0, backend=backend).spikes(arrivals, weight, LIF())
        assert (train.count() == spikes).all()


def test_no_spikes_no_neurons_and_no_samples(backend):
    solver = TimeStepped(40.0, 1.0, backend=backend)
    for batch, inputs in ((2, 0), (0, 3), (0, 0)):
        times = torch.full((batch, inputs), math.inf, dtype=torch.float64)
        layer = SpikingLinear(max(inputs, 1), 4, solver=solver, dtype=torch.float64)
        weight = layer.weight[:, :inputs]
        train = solver.spikes(Spikes.from_times(times), weight, LIF())
        assert train.first_spike_time().shape == (batch, 4)
        smooth(train).backward()
        assert (layer.weight.grad == 0).all()
    silent = SpikingLinear(2, 3, solver=solver)(Spikes.from_times(torch.full((2, 2), math.inf)))
    assert silent.count().sum() == 0
    assert torch.isinf(silent.first_spike_time()).all()


def test_a_batch_equals_its_samples_alone(backend):
    torch.manual_seed(2)
    network = random_network([5, 4, 3], LIF(), TimeStepped(40.0, 1.0, backend=backend))
    arrivals = random_spikes(4, 5)
    together = network(arrivals)
    for b in range(4):
        alone = network(arrivals.select(torch.tensor([b])))
        row = together.select(torch.tensor([b]))
        assert torch.equal(row.index, alone.index)
        torch.testing.assert_close(row.time, alone.time, rtol=0, atol=1e-10)  # sums of matrix products in another order


def test_spikes_after_the_window_have_no_effect(backend):
    solver = TimeStepped(10.0, 1.0, backend=backend)
    weight = torch.full((1, 2), 20.0, dtype=torch.float64, requires_grad=True)
    train = solver.spikes(Spikes.from_times(torch.tensor([[1.0, 10.0]], dtype=torch.float64)), weight, LIF())
    smooth(train).backward()
    assert weight.grad[0, 0] != 0
    assert weight.grad[0, 1] == 0


def test_float32_follows_float64():
    torch.manual_seed(6)
    arrivals = random_spikes(4, 10, per_neuron=3)
    weight = LIF().minimum_weight * torch.randn(8, 10, dtype=torch.float64)
    exact = TimeStepped(40.0, 1.0).spikes(arrivals, weight, LIF())
    single = TimeStepped(40.0, 1.0).spikes(arrivals.to(torch.float32), weight.float(), LIF())
    assert torch.equal(exact.count(), single.count())
    torch.testing.assert_close(single.to_times().double(), exact.to_times(), rtol=0, atol=1e-3)  # P6


# ---- euler -----------------------------------------------------------------------------------------------------------


def test_euler_is_the_classic_recursion(backend):
    """V += dt/tau_mem (I - V), I *= 1 - dt/tau_syn, spikes on grid points, reset to 0."""
    torch.manual_seed(7)
    neuron, dt = LIF(), 1.0
    raster = (torch.rand(40, 2, 6, dtype=torch.float64) < 0.1).double()
    weight = neuron.minimum_weight * torch.randn(5, 6, dtype=torch.float64)
    train = TimeStepped(40.0, dt, "euler", backend=backend).spikes(Spikes.from_raster(raster, dt), weight, neuron)
    v = i = torch.zeros(2, 5, dtype=torch.float64)
    expected = torch.zeros(41, 2, 5, dtype=torch.float64)  # a spike at grid point k
    for t in range(40):
        i = i + raster[t] @ weight.t()
        v, i = v + dt / neuron.tau_mem * (i - v), (1 - dt / neuron.tau_syn) * i
        expected[t + 1] = (v >= neuron.v_th).double()
        v = torch.where(v >= neuron.v_th, 0.0, v)
    assert expected.sum() > 10
    assert torch.equal(train.time, train.time.round())
    expected[39] += expected[40]  # the last bin includes the end of the window
    assert torch.equal(train.to_raster(dt, 40.0), expected[:40])


def test_euler_gradients_have_the_factor_tau_syn():
    """One weight and one spike, where everything is known: dt_k/dw = -phi / Vdot, with phi and Vdot of the recursion."""
    neuron, dt = LIF(), 0.001
    weight = torch.tensor([[10.0]], dtype=torch.float64, requires_grad=True)
    arrivals = Spikes.from_times(torch.zeros(1, 1, dtype=torch.float64))
    gradients = []
    for solver in (TimeStepped(40.0, dt, "euler"), EventDriven(40.0)):
        gradients += torch.autograd.grad(solver.spikes(arrivals, weight, neuron).time[0, 0], weight)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2e-3, atol=0)  # a few dt / (time of the slope's change)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_euler_readout_approaches_the_exact_one(reduce):
    torch.manual_seed(8)
    arrivals = random_spikes(3, 5)
    errors = []
    for solver in (TimeStepped(40.0, 0.1, "euler"), TimeStepped(40.0, 0.05, "euler")):
        readout = LeakyReadout(5, 2, solver=solver, reduce=reduce, dtype=torch.float64)
        readout.weight.data.copy_(torch.linspace(0.5, 2.0, 10).reshape(2, 5))
        exact = EventDriven(40.0).readout(arrivals, readout.weight, readout.neuron, reduce)
        errors.append(float((readout(arrivals) - exact).detach().abs().max()))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.5)  # first order


# ---- the spike train on a grid ---------------------------------------------------------------------------------------


def test_channels_are_the_effects_at_the_end_of_each_step():
    neuron = LIF()
    spikes = Spikes.from_times(torch.tensor([[0.0, 1.25, 1.5]], dtype=torch.float64))
    channels = GridSpikes.from_spikes(spikes.reshape(3, 1), dt=1.0, t_end=3.0).channels(neuron)
    assert channels.shape == (2, 3, 1, 3, 1)
    y = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    _, s, phi = decay(y, neuron.tau_mem, neuron.tau_syn)
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    expected[0, 0, 0], expected[1, 0, 0] = phi[0], s[0]
    expected[0, 1, 1:], expected[1, 1, 1:] = phi[1:], s[1:]
    torch.testing.assert_close(channels[:, :, 0, :, 0], expected, rtol=0, atol=1e-15)


def test_a_cotangent_of_channels_is_a_gradient_of_times(neuron):
    torch.manual_seed(9)
    weights = torch.randn(2, 20, 2, 4, dtype=torch.float64)

    def fn(times):
        return (GridSpikes.from_spikes(Spikes.from_times(times), 1.0, 20.0).channels(neuron) * weights).sum()

    assert check_gradients(fn, 20 * torch.rand(2, 4, 3, dtype=torch.float64)).relative_error <= 1e-8


def test_grid_spikes_are_spikes():
    spikes = random_spikes(2, 6).reshape(2, 3)
    train = GridSpikes.from_spikes(spikes, 0.5, 20.0)
    assert torch.equal(train.first_spike_time(), spikes.first_spike_time())
    assert torch.equal(train.count(), spikes.count())
    assert torch.equal(train.to_raster(0.5, 20.0), spikes.to_raster(0.5, 20.0))
    part = train.select(torch.tensor([1])).to(torch.float32).detach()
    assert (type(part), part.shape, part.dt, part.t_end) == (GridSpikes, (2, 3), 0.5, 20.0)
    assert type(train.to_spikes()) is Spikes
    assert torch.equal(train.to_spikes().time, spikes.time)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": 0.3}, r"t_end must be a whole number of steps dt=0.3: 19.8 or 20.1 would fit, got 20.0"),
        ({"dt": -1.0}, "dt must be positive"),
        ({"t_end": 10.0}, r"spikes lie outside \[0, t_end=10.0\]"),
    ],
)
def test_bad_grids_are_named(change, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        GridSpikes.from_spikes(random_spikes(2, 6), **({"dt": 1.0, "t_end": 20.0} | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((40.0, 0.7), r"t_end must be a whole number of steps dt=0.7: 39.9 or 40.6 would fit, got 40.0"),
        ((40.0, 0.0), "dt must be positive"),
        ((40.0, 1.0, "midpoint"), "scheme must be one of 'exponential', 'euler', got 'midpoint'"),
    ],
)
def test_bad_solvers_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeStepped(*arguments)


def test_bad_input_is_named(backend, monkeypatch):
    weight = torch.ones(1, 1)
    early, now = (Spikes.from_times(torch.tensor([[time]])) for time in (-1.0, 1.0))
    with pytest.raises(ValueError, match="spikes must not come before time 0, got -1.0"):
        TimeStepped(40.0, 1.0, backend=backend).spikes(early, weight, LIF())
    with pytest.raises(ValueError, match="dt must be at most 5.0 .* choose a smaller dt"):
        TimeStepped(40.0, 8.0, "euler", backend=backend).spikes(now, weight, LIF())
    with pytest.raises(ValueError, match="weight must be finite"):
        TimeStepped(40.0, 1.0, backend=backend).spikes(now, math.inf * weight, LIF())
    if backend == "torch":  # the reference takes minutes to emit a million spikes one after the other
        monkeypatch.setattr(tape, "MAX_SPIKES_PER_SAMPLE", 500)
    with pytest.raises(ValueError, match=r"emit more than [\d,]+ spikes; lower the weights"):
        TimeStepped(40.0, 1.0, backend=backend).spikes(now, 1e9 * weight, LIF())


# ---- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_convergence_to_the_event_driven_solver(reduce):
    torch.manual_seed(1)
    arrivals, target = random_spikes(200, 4), torch.randint(0, 3, (200,))
    exponential, euler = study_convergence(
        lambda solver: convergence_network([4, 5, 3], solver, reduce), arrivals, target, F.cross_entropy, t_end=40.0,
        dts=(2.0, 1.0, 0.5, 0.2, 0.1, 0.05),
    )  # fmt: skip
    # at the smallest step hardly any neuron spikes among arrivals at several times; without them the error is rounding
    assert exponential.counts_changed[-1] == 0.0
    assert exponential.gradient_error[-1] < 1e-4
    assert exponential.order(exponential.loss_error) >= 1.8
    # more than in proportion to dt: both the share of spikes in such steps and their error fall; fitted to few samples
    assert exponential.order(exponential.gradient_error) >= 1.5
    assert (exponential.gradient_error_unchanged < 0.05).all()
    assert (exponential.loss_error < euler.loss_error).all()
    assert (exponential.gradient_error < euler.gradient_error).all()
