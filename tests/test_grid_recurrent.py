"""Layers of all kinds on a grid, in one walk through the steps: against autograd, and plain layers fed again and again."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_exact_gradients, diverse, random_layer, random_spikes, smooth

from eventprop import DelayedSpikingLinear, GridSpikes, Spikes, SpikingLinear, SpikingRecurrent, TimeStepped
from eventprop.solvers.solver import spikes_by_passes

KINDS = {
    "neurons": (SpikingLinear, {}),
    "delays": (DelayedSpikingLinear, {"mean_delay": 3.0}),
    "feedback": (SpikingRecurrent, {"delay": 2.5}),
}


def made(kind: str, solver: TimeStepped, neuron=None, **options) -> SpikingLinear:
    """Six neurons that spike several times; always the same."""
    torch.manual_seed(0)
    layer, defaults = KINDS[kind]
    return random_layer(5, 6, solver, neuron, layer, **{**defaults, **options})


def found(layer: SpikingLinear, spikes: Spikes, emit=None) -> tuple[GridSpikes, tuple[torch.Tensor, ...]]:
    """The spikes, and the gradients of input times and parameters."""
    time = spikes.time.clone().requires_grad_()
    train = (emit or layer)(Spikes._trusted(time, spikes.index, spikes.shape))
    return train, torch.autograd.grad(smooth(train), [time, *layer.parameters()], materialize_grads=True)


def assert_same(one, other) -> None:
    (train, gradients), (expected, expected_gradients) = one, other
    assert train.count().sum() > 20
    assert torch.equal(train.index, expected.index)
    # rounding, divided by slopes; in slopes and gradients once more
    torch.testing.assert_close(train.time, expected.time, rtol=0, atol=1e-10)
    torch.testing.assert_close(train.slope, expected.slope, rtol=1e-9, atol=1e-9)
    for gradient, known in zip(gradients, expected_gradients, strict=True):
        assert (gradient - known).norm() <= 1e-9 * known.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refractory", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("dt", [0.5, 2.0, 8.0])
def test_the_walk_back_gives_what_autograd_does(kind, refractory, dt):
    """With steps longer than time constants, and bounds on slopes."""
    options = {"delay": max(2.5, dt)} if kind == "feedback" else {}
    layers = [
        made(kind, TimeStepped(24.0, dt, grazing="saturate", min_slope=0.1, backend=backend), neuron, **options)
        for backend in ("numba", "torch")
        for neuron in [diverse(6, refractory=refractory)]
    ]
    for layer in layers:
        layer.weight.data[0, :3] *= -1.0
    spikes = random_spikes(3, 5)
    assert_same(*(found(layer, spikes) for layer in layers))


@pytest.mark.parametrize("scheme", ["exponential", "euler"])
@pytest.mark.parametrize("delay", [2.0, 3.3])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_feedback_is_that_of_a_plain_layer_fed_again_and_again(scheme, delay, backend):
    """2 ms is the length of a step: what is emitted as one ends acts as the next begins."""
    layer = made("feedback", TimeStepped(24.0, 2.0, scheme=scheme, backend=backend), delay=delay)
    layer.recurrent_weight.data.mul_(5.0)
    spikes = random_spikes(3, 5)
    expected = found(layer, spikes, lambda train: spikes_by_passes(layer.solver, layer.problem, train))
    assert_same(found(layer, spikes), expected)


@pytest.mark.parametrize("refractory", [0.0, 0.7, 3.0])
@pytest.mark.parametrize(("dt", "delay"), [(2.0, 2.0), (0.5, 1.3)])
def test_gradients_of_recurrent_layers_of_neurons_that_differ(refractory, dt, delay):
    layer = made("feedback", TimeStepped(24.0, dt), diverse(6, refractory=refractory), delay=delay)
    assert_exact_gradients(layer, random_spikes(2, 5, per_neuron=1))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_other_samples_change_nothing(kind):
    """Bit for bit, in float32."""
    torch.manual_seed(0)
    layer = made(kind, TimeStepped(24.0, 0.5), diverse(6, refractory=0.7)).float()
    spikes = random_spikes(9, 5, dtype=torch.float32)
    results, saved = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train, gradients = found(layer, spikes)
            results.append((train.time, train.index, *gradients))
    finally:
        torch.set_num_threads(saved)
    assert all(map(torch.equal, *results))
    for k in range(9):
        alone, (by_time, *_) = found(layer, spikes[k : k + 1])
        count = alone.time.shape[1]
        assert torch.equal(alone.time[0], train.time[k, :count])
        assert torch.equal(by_time[0], gradients[0][k])


@pytest.mark.parametrize("delay", [1e6, 50.0])
def test_what_comes_after_the_window_has_no_effect(delay):
    plain, spikes = made("neurons", TimeStepped(24.0, 2.0)), random_spikes(3, 5)
    again = made("feedback", TimeStepped(24.0, 2.0), delay=delay)
    again.weight.data.copy_(plain.weight)
    torch.testing.assert_close(again(spikes).time, plain(spikes).time, rtol=0, atol=1e-11)  # rounding
    late = made("delays", TimeStepped(24.0, 2.0), mean_delay=delay)
    late.raw_delay.data.fill_(delay)
    train, gradients = found(late, spikes)
    assert train.count().sum() == 0
    assert not any(gradient.any() for gradient in gradients)


def test_a_delay_below_zero_is_named():
    solver = TimeStepped(24.0, 2.0)
    problem = made("delays", solver).problem
    early = problem._replace(synapses=problem.synapses._replace(delay=-problem.synapses.delay))
    with pytest.raises(ValueError, match="delay must be >= 0, got -"):
        solver.solve(early, random_spikes(1, 5))
