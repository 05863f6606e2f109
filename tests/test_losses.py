"""Losses against their formulas, and at their borders."""

from __future__ import annotations

import math

import pytest
import torch

from eventprop import Spikes, first_spike_cross_entropy
from eventprop.losses import FirstSpike, MaxVoltage

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


def test_losses_do_not_overflow():
    loss = first_spike_cross_entropy(output([[400.0, 1.0]]), torch.tensor([0]))
    assert torch.isfinite(loss)


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
