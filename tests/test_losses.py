"""Losses against their formulas, and at their borders."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import assert_exact, random_network, random_spikes
from test_config import composed, parse

from eventprop import (
    LIF,
    EventDriven,
    Spikes,
    SpikingLinear,
    TimeStepped,
    first_spike_cross_entropy,
    silent_margin,
    smooth_count,
    spike_count_cross_entropy,
    spike_count_penalty,
    spike_time_mse,
)
from eventprop.losses import FirstSpike, MaxVoltage, SpikeCount, WeightedVoltage
from eventprop.training.config import ConfigError
from eventprop.training.loop import train

INF = math.inf


def output(times) -> Spikes:
    return Spikes.from_times(torch.tensor(times, dtype=torch.float64))


def test_first_spike_cross_entropy_is_the_formula():
    times, target, tau0, tau1, alpha = [[3.0, 4.0, 3.5], [9.0, 8.0, 8.2]], [0, 2], 0.5, 6.4, 0.003
    expected = 0.0
    for row, label in zip(times, target, strict=True):
        softmax = math.exp(-row[label] / tau0) / sum(math.exp(-t / tau0) for t in row)
        expected += -math.log(softmax) + alpha * (math.exp(row[label] / tau1) - 1)
    loss = first_spike_cross_entropy(output(times), torch.tensor(target), tau0, tau1, alpha)
    assert float(loss) == pytest.approx(expected / 2, rel=1e-12)


def test_silent_neurons_leave_the_softmax_and_silent_targets_the_gradient():
    spikes = output([[3.0, INF, 4.0], [3.0, INF, 4.0], [INF, INF, INF]])
    spikes.time.requires_grad_(True)
    loss = first_spike_cross_entropy(spikes, torch.tensor([0, 1, 2]))
    two = output([[3.0, 4.0]])
    answered = float(first_spike_cross_entropy(two, torch.tensor([0])))
    assert float(loss.detach()) == pytest.approx((answered + 2 * math.log(3)) / 3, rel=1e-12)
    loss.backward()
    assert torch.isfinite(spikes.time.grad).all()
    assert spikes.time.grad[0].all()
    assert not spikes.time.grad[1:].any()


@pytest.mark.parametrize(
    ("time", "alpha", "value", "gradient"),
    [
        (600.0, 0.0, 599 / 0.5, 1 / 0.5),
        (600.0, 3e-3, 3e-3 * math.exp(600 / 6.4), 3e-3 / 6.4 * math.exp(600 / 6.4)),  # 1.6e38: float32 just holds it
        (1e9, 0.0, (1e9 - 1) / 0.5, 1 / 0.5),
    ],
)
def test_losses_do_not_overflow(time, alpha, value, gradient):
    spikes = Spikes.from_times(torch.tensor([[time, 1.0]]))
    spikes.time.requires_grad_(True)
    loss = first_spike_cross_entropy(spikes, torch.tensor([0]), alpha=alpha)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)  # float32
    assert float(spikes.time.grad[0, 1]) == pytest.approx(gradient, rel=1e-6)


def test_training_says_which_option_of_the_loss_is_wrong():
    config = parse(composed("+experiment=yin_yang", "data.n_train=64", "data.n_test=64", "loss.tau1=0.1"))
    with pytest.raises(ConfigError, match="loss.tau1=0.1 is too small for a target spike at .* ms: alpha exp"):
        train(config, None)


@pytest.mark.parametrize("change", ["loss.tau0=-1", "loss.alpha=-1", "loss.tau1=0"])
def test_options_of_losses_are_checked_before_training(change):
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        parse(composed("+experiment=yin_yang", change))


def test_no_spike_is_never_a_right_answer():
    assert FirstSpike().predict(output([[INF, INF], [2.0, 1.0], [INF, 5.0]])).tolist() == [-1, 1, 1]


def test_bad_arguments_are_named():
    spikes = output([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\), got values from 2 to 2"):
        first_spike_cross_entropy(spikes, torch.tensor([2]))
    with pytest.raises(ValueError, match=r"target must have shape \[1\].*got \[2\]"):
        first_spike_cross_entropy(spikes, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="target must be int64"):
        MaxVoltage()(torch.zeros(1, 2), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="tau0 must be positive"):
        first_spike_cross_entropy(spikes, torch.tensor([0]), tau0=0.0)
    with pytest.raises(ValueError, match="alpha must be >= 0"):
        first_spike_cross_entropy(spikes, torch.tensor([0]), alpha=-1.0)


def test_spike_time_mse_is_the_formula():
    """Silent neurons, and targets of +inf, leave the mean."""
    spikes = output([[3.0, 5.0, INF], [1.0, 2.0, 7.0]])
    target = torch.tensor([[2.0, INF, 4.0], [1.5, 2.0, 9.0]], dtype=torch.float64)
    assert float(spike_time_mse(spikes, target, tau=2.0)) == pytest.approx((1.0 + 0.25 + 0.0 + 4.0) / 4 / 4, rel=1e-12)
    nobody = output([[INF, INF, INF]])
    assert float(spike_time_mse(nobody, target[:1])) == 0.0


def test_smooth_counts_are_the_formula():
    spikes = output([[[3.0, 30.0], [INF, INF]], [[39.0, 45.0], [40.0, INF]]])
    expected = [[2 - math.exp(-37 / 10) - math.exp(-10 / 10), 0.0], [1 - math.exp(-1 / 10), 0.0]]
    torch.testing.assert_close(smooth_count(spikes, 40.0, 10.0).tolist(), expected)


def test_count_penalties_push_spikes_to_the_right_side():
    few, many = output([[[38.0]]]), output([[[1.0, 2.0, 3.0]]])
    for spikes, bounds, later in ((few, {"low": 1.0}, False), (many, {"high": 2.0}, True)):
        spikes.time.requires_grad_(True)
        spike_count_penalty(spikes, 40.0, **bounds).backward()
        step = -spikes.time.grad  # of gradient descent
        assert ((step > 0) == later).all()
    assert spike_count_penalty(few, 40.0, low=0.1, high=3.0).item() == 0.0


@pytest.mark.parametrize("solver", [EventDriven(40.0), TimeStepped(40.0, 0.5)], ids=repr)
def test_gradients_of_losses_and_penalties(solver):
    torch.manual_seed(3)
    hidden, last = random_network([5, 6, 3], LIF(), solver)
    hidden.reset_parameters(1.0, 2.0)  # some neurons are silent
    spikes, labels = random_spikes(4, 5), torch.tensor([0, 1, 2, 0])
    times = 20.0 * torch.rand(4, 3, dtype=torch.float64)

    def loss(*_):
        middle = hidden(spikes)
        out = last(middle)
        margin = silent_margin(hidden, spikes, middle)
        assert 0 < (margin > 0).sum() < margin.numel()
        penalty = margin.square().mean() + spike_count_penalty(middle, 40.0, low=2.0, high=3.0)
        return spike_time_mse(out, times, 5.0) + spike_count_cross_entropy(out, labels, 40.0) + penalty

    assert_exact(loss, [hidden.weight, last.weight])


def test_the_margin_of_a_silent_neuron_is_what_its_weight_lacks():
    layer = SpikingLinear(1, 2, solver=EventDriven(100.0), dtype=torch.float64)
    layer.weight.data = torch.tensor([[0.25], [1.5]], dtype=torch.float64) * LIF().minimum_weight
    arrivals = output([[3.0]])
    margin = silent_margin(layer, arrivals, layer(arrivals))
    torch.testing.assert_close(margin.tolist(), [[0.75, 0.0]])
    margin.sum().backward()
    torch.testing.assert_close(layer.weight.grad.tolist(), [[-1.0 / LIF().minimum_weight], [0.0]])


def test_the_margin_on_a_grid_is_that_in_continuous_time():
    """V peaks within a step, where a grid finds crossings too."""
    layer = SpikingLinear(1, 1, solver=TimeStepped(40.0, 5.0), dtype=torch.float64)
    layer.weight.data.fill_(0.99 * LIF().minimum_weight)
    arrivals = output([[2.5]])
    out = layer(arrivals)
    assert out.count().sum() == 0
    assert silent_margin(layer, arrivals, out).item() == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("objective", [SpikeCount(), WeightedVoltage(10.0)], ids=repr)
def test_objectives_build_their_output_and_read_it(objective):
    torch.manual_seed(0)
    layer = objective.output_layer(4, 3, solver=EventDriven(40.0))
    result = layer(Spikes.from_times(torch.rand(5, 4)))
    assert objective(result, torch.zeros(5, dtype=torch.long)).isfinite()
    assert objective.predict(result).shape == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: spike_time_mse(output([[1.0]]), torch.zeros(1, 2)),
            "target must have shape [1, 1], one time per neuron",
        ),
        (lambda: spike_time_mse(output([[1.0]]), torch.tensor([[INF - INF]])), "target must be finite, or +inf"),
        (lambda: smooth_count(output([[1.0]]), 40.0, 0.0), "tau must be positive"),
        (lambda: spike_count_penalty(output([[1.0]]), 40.0, low=3.0, high=1.0), "low and high must satisfy 0 <= low"),
        (lambda: silent_margin(torch.nn.Identity(), None, None), "layer must be a SpikingLinear of LIF neurons"),
    ],
)
def test_errors_of_losses(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()
