"""Neurons with parameters of their own, and layers that receive their own spikes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import assert_exact, assert_exact_gradients, diverse, learnable, random_layer, random_spikes
from scipy.integrate import solve_ivp

from eventprop import (
    LIF,
    BiasSpike,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)
from eventprop.core.neuron import decay, decay_by_tau

SOLVER = EventDriven(40.0)


def layer(n: int, neuron: LearnableLIF, inputs: int = 5) -> SpikingLinear:
    return random_layer(inputs, n, SOLVER, neuron)


def recurrent(n: int, neuron, delay: float, inputs: int = 5) -> SpikingRecurrent:
    return random_layer(inputs, n, SOLVER, neuron, SpikingRecurrent, delay=delay, recurrent_std=0.3)


def test_plain_parameters_give_what_the_plain_layer_gives():
    torch.manual_seed(0)
    spikes = random_spikes(4, 5)
    general = layer(6, LearnableLIF(6, dtype=torch.float64))
    plain = SpikingLinear(5, 6, solver=SOLVER, dtype=torch.float64)
    plain.weight.data.copy_(general.weight)
    outputs = [module(spikes) for module in (general, plain)]
    assert torch.equal(outputs[0].index, outputs[1].index)
    torch.testing.assert_close(outputs[0].time, outputs[1].time, rtol=0, atol=1e-11)  # rounding
    gradients = [
        torch.autograd.grad(output.time[output.index >= 0].square().sum(), module.weight)[0]
        for output, module in zip(outputs, (general, plain), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)  # rounding, divided by slopes


@pytest.mark.parametrize("refractory", [0.0, 3.0])
def test_spikes_of_one_neuron_against_an_integrator(refractory):
    torch.manual_seed(1)
    neuron = diverse(4, refractory=refractory)
    module, spikes = layer(4, neuron), random_spikes(1, 5)
    with torch.no_grad():
        found, weight_of = module(spikes), module.weight.detach().tolist()
    assert (found.count() > 0).sum() >= 3
    for n in range(4):
        tau_mem, tau_syn, v_th, bias, _ = neuron.table().detach()[n].tolist()

        def derivative(_, state, tau_mem=tau_mem, tau_syn=tau_syn, bias=bias):
            return [(state[1] + bias - state[0]) / tau_mem, -state[1] / tau_syn]

        def threshold(_, state, v_th=v_th):
            return state[0] - v_th

        threshold.terminal, threshold.direction = True, 1.0
        state, now, expected = [0.0, 0.0], 0.0, []
        arrivals = [(float(t), weight_of[n][int(m)]) for t, m in zip(spikes.time[0], spikes.index[0], strict=True)]
        held = -1.0
        for until, weight in [*arrivals, (40.0, 0.0)]:
            while now < until:
                if held > now:
                    stop = min(held, until)
                    state, now = [0.0, state[1] * np.exp(-(stop - now) / tau_syn)], stop
                    continue
                solution = solve_ivp(
                    derivative, (now, until), state, events=threshold, rtol=1e-11, atol=1e-13, method="DOP853"
                )
                now, state = solution.t[-1], solution.y[:, -1].tolist()
                if solution.status == 1:
                    expected.append(now)
                    state[0], held = 0.0, now + refractory
            state[1] += weight
        mine = found.time[0][found.index[0] == n].numpy()
        assert len(mine) == len(expected)
        assert np.allclose(mine, expected, atol=1e-7)  # the integrator's tolerance, divided by slopes


@pytest.mark.parametrize("refractory", [0.0, 3.0])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_the_parameters_of_neurons(refractory, shared):
    torch.manual_seed(0)
    module, spikes = layer(4, learnable(shared, refractory)), random_spikes(2, 5)
    output = LeakyReadout(4, 2, solver=SOLVER, reduce="mean", dtype=torch.float64)

    def loss(time, *_):
        return output(module(Spikes._trusted(time, spikes.index, (5,)))).square().sum()

    assert len(list(module.parameters())) == 5
    assert_exact(loss, [spikes.time.clone(), *module.parameters()])


@pytest.mark.parametrize("delay", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("refractory", [0.0, 2.0])
def test_gradients_of_recurrent_layers(delay, refractory):
    torch.manual_seed(2)
    module, spikes = recurrent(4, diverse(4, refractory=refractory), delay), random_spikes(2, 5)
    assert_exact_gradients(module, spikes)
    assert module(spikes).count().sum() > 20


@pytest.mark.parametrize("delay", [0.0, 0.7, 5.0])
def test_recurrent_spikes_are_those_of_a_feed_forward_layer_that_is_fed_them(delay):
    """Self-consistency: given its own delayed spikes as further inputs, the plain layer emits the same spikes."""
    torch.manual_seed(3)
    module, spikes = recurrent(6, LIF(), delay), random_spikes(4, 5)
    output = module(spikes)
    fed = SpikingLinear(11, 6, solver=SOLVER, dtype=torch.float64)
    fed.weight.data.copy_(torch.cat([module.weight, module.recurrent_weight], dim=1))
    # without a delay, what is fed comes with the spike that it follows; rounding would decide which is first: hence a bit later
    later = delay or 1e-9
    again = output.reordered(output.time + later, output.index)
    inputs = torch.cat([spikes.time, again.time], 1).detach()
    index = torch.cat([spikes.index, torch.where(again.index >= 0, again.index + 5, -1)], 1)
    expected = fed(Spikes._trusted(inputs, index, (11,)).reordered(inputs, index))
    assert torch.equal(output.index, expected.index)
    # rounding, and what was added, divided by slopes
    torch.testing.assert_close(output.time, expected.time, rtol=0, atol=1e-9 if delay else 1e-7)
    assert not torch.equal(
        output.count(), module.solver.spikes(spikes, module.weight, module.neuron).count()
    )  # the feedback matters


def test_float32_and_threads():
    torch.manual_seed(4)
    double = recurrent(5, diverse(5, bias=False), 1.0)
    spikes = random_spikes(9, 5)
    single = SpikingRecurrent(5, 5, neuron=diverse(5, bias=False), solver=SOLVER, delay=1.0)
    for name in ("weight", "recurrent_weight"):
        getattr(single, name).data.copy_(getattr(double, name))
    results, saved = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            output = single(spikes.to(torch.float32))
            loss = output.time[output.index >= 0].square().sum()
            results.append((output.time, *torch.autograd.grad(loss, single.parameters())))
    finally:
        torch.set_num_threads(saved)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    expected = double(spikes)
    assert torch.equal(results[0][0].isfinite(), expected.time.isfinite())
    torch.testing.assert_close(results[0][0].double(), expected.time, rtol=0, atol=1e-3)  # promise P6


def test_constant_current_alone_fires_in_a_known_rhythm():
    neuron = LearnableLIF(1, LIF(20.0, 5.0, 1.0), bias=2.0, refractory=1.5, dtype=torch.float64)
    module = SpikingLinear(1, 1, neuron=neuron, solver=EventDriven(5000.0), dtype=torch.float64)
    silent = Spikes(torch.zeros(1, 0, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.long), 1)
    time = module(silent).time[0].detach()
    charge = 20.0 * np.log(2.0)  # V = 2 (1 - exp(-t/20)) = 1
    expected = charge + (charge + 1.5) * torch.arange(1000, dtype=torch.float64)
    expected = expected[expected < 5000.0]
    assert len(expected) > 300  # more than the first buffer holds
    torch.testing.assert_close(time, expected, rtol=1e-12, atol=0)  # closed form, rounding
    with torch.no_grad():
        neuron.bias.fill_(1e9)
        neuron.refractory = 0.0
    with pytest.raises(ValueError, match="more than 1,048,576 spikes"):
        module(silent)


@pytest.mark.parametrize("tau_syn", [5.0, 9.0, 9.999, 10.0, 10.0 + 1e-9, 10.01, 30.0])
@pytest.mark.parametrize("dt", [1e-3, 1.0, 50.0])
def test_derivatives_of_the_flow_by_the_time_constants(tau_syn, dt):
    def numeric(which: int, output: int) -> float:
        step = 1e-3 * [10.0, tau_syn][which]
        values = []
        for k in (-2, -1, 1, 2):  # five-point rule: error step^4, 1e-12, and rounding 1e-13 of what is differentiated
            taus = [10.0, tau_syn]
            taus[which] += k * step
            values.append(float(decay(torch.tensor(dt, dtype=torch.float64), *taus)[output]))
        return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)

    length = torch.tensor(dt, dtype=torch.float64)
    found = decay_by_tau(length, *decay(length, 10.0, tau_syn), 10.0, tau_syn)
    expected = [numeric(0, 0), numeric(0, 2), numeric(1, 1), numeric(1, 2)]
    for x, y in zip(found, expected, strict=True):
        assert float(x) == pytest.approx(
            y, rel=1e-6
        )  # the last of them is 1e-6 of what is differentiated, and good to 1e-7


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LearnableLIF(0), ValueError, "num_neurons must be >= 1, got 0"),
        (lambda: LearnableLIF(3, 5.0), TypeError, "neuron must be an eventprop.LIF, got float"),
        (lambda: LearnableLIF(3, learn=["tau"]), ValueError, "learn must be one of 'tau_mem', 'tau_syn', 'v_th', 'bias', got"),
        (lambda: LearnableLIF(3, bias=float("nan")), ValueError, "bias must be finite, got nan"),
        (lambda: LearnableLIF(3, refractory=-1.0), ValueError, "refractory must be >= 0 and finite, got -1.0"),
        (lambda: layer(4, LearnableLIF(3)), ValueError, "neuron must have num_neurons=4"),
        (lambda: SpikingRecurrent(2, 2, solver=SOLVER, delay=-1.0), ValueError, "delay must be >= 0 and finite, got -1.0"),
        (
            lambda: SpikingRecurrent(2, 2, solver=TimeStepped(4.0, 1.0), delay=0.5)(Spikes.from_times(torch.ones(1, 2))),
            ValueError,
            "solver must be EventDriven for SpikingRecurrent, delay below a step, or 0, got TimeStepped(t_end=4.0, dt=1.0",
        ),
        (lambda: SpikingRecurrent(2, 2, solver=SOLVER, recurrent_std=-1.0), ValueError, "recurrent_std must be >= 0"),
        (lambda: LeakyReadout(2, 2, solver=SOLVER, neuron=LearnableLIF(2)), TypeError, "neuron must be LIF: no solver"),
        (
            lambda: SpikingRecurrent(5, 2, solver=EventDriven(4.0, backend="torch"), delay=0.0)(
                random_spikes(1, 5, dtype=torch.float32)
            ),
            ValueError,
            "backend must be 'auto' or 'numba', and tensors on the CPU, for SpikingRecurrent, delay below a step, or 0 with "
            "EventDriven, got 'torch' and cpu",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


@pytest.mark.parametrize("solver", [TimeStepped(20.0, 0.5), EventDriven(20.0, backend="torch")], ids=repr)
@pytest.mark.parametrize("delay", [1.3, 5.0])
def test_gradients_of_recurrent_layers_by_passes(solver, delay):
    torch.manual_seed(2)
    module, spikes = recurrent(2, LIF(), delay, inputs=3), random_spikes(1, 3, window=10.0)
    module.solver = solver
    assert_exact_gradients(module, spikes)


@pytest.mark.parametrize("delay", [0.7, 5.0])
def test_passes_give_what_the_walk_from_event_to_event_gives(delay):
    torch.manual_seed(3)
    module, spikes = recurrent(6, LIF(), delay), random_spikes(4, 5)
    results = []
    for backend in ("numba", "torch"):
        module.solver = EventDriven(40.0, backend=backend)
        output = module(spikes)
        loss = output.time[output.index >= 0].square().sum()
        results.append((output.time, *torch.autograd.grad(loss, list(module.parameters()))))
    for walked, repeated in zip(*results, strict=True):
        torch.testing.assert_close(walked, repeated, rtol=1e-8, atol=1e-9)  # rounding, divided by slopes


def test_recurrence_on_a_grid_converges_to_the_exact_one():
    torch.manual_seed(3)
    module, spikes = recurrent(6, LIF(), 2.0), random_spikes(4, 5)
    exact, errors = module(spikes), []
    for dt in (2.0, 0.5, 0.05):
        module.solver = TimeStepped(40.0, dt)
        output = module(spikes)
        assert torch.equal(output.count(), exact.count())
        errors.append(float((output.to_times() - exact.to_times()).detach().nan_to_num().abs().mean()))
    assert errors[2] < errors[1] / 10.0 < errors[0] / 40.0  # at least of first order; seen: 1e-2, 2e-5 and rounding


def test_a_bias_spike_is_an_input_that_always_comes():
    spikes = BiasSpike(7.0)(random_spikes(3, 5))
    assert spikes.shape == (6,)
    assert spikes.to_times()[:, 5, 0].tolist() == [7.0] * 3
    assert (spikes.time[:, 1:] >= spikes.time[:, :-1]).all()
    with pytest.raises(ValueError, match="time must be finite, got inf"):
        BiasSpike(float("inf"))


def test_gradients_of_weights_that_are_zero_are_found():
    """0 -> 1 -> 2 spike in turn, then 3 -> 4 by another input. The weight of 0 from 2 to 3 changes no spike: they are final
    a pass before the gradient of that weight is."""
    module = SpikingRecurrent(2, 5, solver=TimeStepped(60.0, 0.1), delay=1.0, dtype=torch.float64)
    strong = 1.5 * LIF().minimum_weight
    module.weight.data.zero_()
    module.recurrent_weight.data.zero_()
    module.weight.data[0, 0] = module.weight.data[3, 1] = strong
    for source, target in ((0, 1), (1, 2), (3, 4)):
        module.recurrent_weight.data[target, source] = strong
    spikes = Spikes.from_times(torch.tensor([[0.0, 25.0]], dtype=torch.float64))

    def last(*_):
        output = module(spikes)
        return output.time[output.index == 4].sum()

    report = assert_exact(last, [module.recurrent_weight])
    assert abs(report.analytic[0][3, 2]) > 0.1
