"""Dropout and augmentation of spike trains."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import assert_exact, random_network, random_spikes

from eventprop import (
    LIF,
    BackgroundSpikes,
    EventDriven,
    GridSpikes,
    ShiftImage,
    SpikeDropout,
    Spikes,
    SpikeTimeJitter,
    SpikingLinear,
    TimeStepped,
    latency_encode,
)

MODULES = [SpikeDropout(0.3), SpikeTimeJitter(2.0), ShiftImage(2), BackgroundSpikes(0.01, 40.0)]


def spikes() -> Spikes:
    torch.manual_seed(0)
    return random_spikes(64, 16).reshape(4, 4)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_rows_stay_well_formed_and_only_training_changes_them(module):
    before = spikes()
    after = module.train()(before)
    Spikes(after.time, after.index, after.num_neurons, after.slope)  # checks order, padding and range
    assert not torch.equal(after.count(), before.count()) or not torch.equal(after.to_times(), before.to_times())
    assert module.eval()(before) is before


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_nothing_happens_to_nothing(module):
    for rows in (0, 3):
        empty = Spikes(torch.zeros(rows, 0), torch.zeros(rows, 0, dtype=torch.long), 16, shape=(4, 4))
        assert module.train()(empty).batch_size == rows


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_gradients_reach_the_times_of_the_spikes_that_stay(module):
    torch.manual_seed(0)
    before = random_spikes(3, 16)
    time = before.time.clone().requires_grad_(True)
    layer = random_network([16, 5], LIF(), EventDriven(40.0))

    def loss(time):
        torch.manual_seed(1)
        output = layer(module.train()(Spikes._trusted(time, before.index, (4, 4))))
        return output.time[output.index >= 0].square().sum()

    assert_exact(loss, [time])


def test_dropout_drops_the_share_it_is_asked_to_and_keeps_what_arrives_on_average():
    torch.manual_seed(0)
    before = Spikes(torch.arange(2000.0).expand(50, -1), torch.zeros(50, 2000, dtype=torch.long), 1)
    after = SpikeDropout(0.3).train()(before)
    kept = after.count().sum().item() / 100_000
    assert abs(kept - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 100_000)  # five standard deviations
    assert after.height * 0.7 == pytest.approx(1.0)
    assert SpikeDropout(0.5).train()(after).height * 0.35 == pytest.approx(1.0)


@pytest.mark.parametrize("solver", [EventDriven(40.0), TimeStepped(40.0, 1.0)], ids=["events", "grid"])
def test_the_height_of_spikes_multiplies_the_weights_that_they_meet(solver):
    torch.manual_seed(0)
    plain, layer = random_spikes(3, 6), SpikingLinear(6, 4, solver=solver, dtype=torch.float64)
    high = Spikes(plain.time, plain.index, 6, height=1.5)
    expected = solver.spikes(plain, 1.5 * layer.weight, layer.neuron)
    assert expected.count().sum() > 0
    assert torch.equal(layer(high).time, expected.time)
    assert torch.equal(*(torch.autograd.grad(train.time[0, 0], layer.weight)[0] for train in (layer(high), expected)))


def test_jitter_has_the_spread_it_is_asked_for_and_keeps_a_grid():
    torch.manual_seed(0)
    before = Spikes(torch.full((1000, 1), 100.0), torch.zeros(1000, 1, dtype=torch.long), 1)
    moved = SpikeTimeJitter(3.0).train()(before).time
    assert abs(moved.std().item() - 3.0) < 5 * 3.0 / math.sqrt(2000)  # five standard errors of a standard deviation
    grid = GridSpikes.from_spikes(before, dt=1.0, t_end=101.0)
    moved = SpikeTimeJitter(3.0).train()(grid)
    assert isinstance(moved, GridSpikes)
    assert moved.time.max() == 101.0


def test_shift_moves_images_and_loses_what_leaves_the_frame():
    image = torch.zeros(1, 5, 6)
    image[0, 0, 2], image[0, 3, 5] = 1.0, 0.5
    module, seen = ShiftImage(1).train(), set()
    torch.manual_seed(0)
    for _ in range(200):
        times = module(latency_encode(image)).to_times(1)[0, :, 0].reshape(5, 6)
        where = {(int(y), int(x), float(times[y, x])) for y, x in torch.isfinite(times).nonzero()}
        seen.add(frozenset(where))
    bright, half = (float(latency_encode(image).time[0, k]) for k in range(2))
    expected = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            spots = {(down, 2 + right, bright), (3 + down, 5 + right, half)}
            expected.add(frozenset((y, x, t) for y, x, t in spots if 0 <= y < 5 and 0 <= x < 6))
    assert seen == expected


def test_background_comes_at_the_rate_it_is_asked_for():
    torch.manual_seed(0)
    silent = Spikes(torch.zeros(500, 0), torch.zeros(500, 0, dtype=torch.long), 20)
    after = BackgroundSpikes(0.01, 50.0).train()(silent)
    count = after.count().sum().item()
    assert abs(count - 5000) < 5 * math.sqrt(5000)  # Poisson, five standard deviations
    assert after.time[after.index >= 0].max() <= 50.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpikeDropout(1.0), "p must lie in [0, 1), got 1.0"),
        (lambda: SpikeTimeJitter(-1.0), "std must be positive and finite, got -1.0"),
        (lambda: ShiftImage(0), "pixels must be >= 1, got 0"),
        (lambda: BackgroundSpikes(0.0, 1.0), "rate must be positive and finite, got 0.0"),
        (
            lambda: ShiftImage().train()(spikes().reshape(16)),
            "the input must have the shape of an image, got (16,)",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
