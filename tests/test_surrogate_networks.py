"""The baseline's encoders, layers, losses, networks and monitor."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from conftest import random_spikes
from torch import nn
from torch.nn import functional as F

from eventprop import LIF as CurrentLIF
from eventprop import EventDriven, SpikingLinear, TimeStepped
from eventprop.losses import MeanVoltage
from eventprop.training.networks import fully_connected
from surrogate_baseline.alignment import align, gradients
from surrogate_baseline.encoders import Direct, Latency, Poisson
from surrogate_baseline.layers import Dropout, Linear, Stepwise
from surrogate_baseline.losses import FirstSpikeStep, MaxPotential, RateCrossEntropy, RateMSE, first_spike_step
from surrogate_baseline.monitor import Monitor
from surrogate_baseline.networks import Steps, leaky_integrate_and_fire, rate_convolutional, rate_fully_connected
from surrogate_baseline.neurons import IF, LIF
from surrogate_baseline.solver import SurrogateTimeStepped
from surrogate_baseline.surrogates import Arctan


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_poisson_spikes_at_the_rate_of_the_pixel_and_is_seeded():
    images = torch.tensor([[0.0, 0.25, 1.0]])
    raster = Poisson(4000)(images, generator(0))
    assert raster.shape == (4000, 1, 3)
    assert set(raster.unique().tolist()) == {0.0, 1.0}
    rates = raster.mean((0, 1)).tolist()
    assert rates[0] == 0.0
    assert rates[2] == 1.0
    assert rates[1] == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))  # four standard errors
    assert torch.equal(raster, Poisson(4000)(images, generator(0)))
    assert not torch.equal(raster, Poisson(4000)(images, generator(1)))
    correlation = torch.corrcoef(torch.stack([raster[:-1, 0, 1], raster[1:, 0, 1]]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(4000)  # steps are independent


def test_direct_is_the_image_in_every_step_and_costs_no_memory():
    images = torch.randint(0, 256, (2, 4, 4), dtype=torch.uint8)
    raster = Direct(3)(images)
    assert torch.equal(raster, (images.flatten(1) / 255).expand(3, 2, 16))
    assert raster.stride(0) == 0


def test_latency_puts_the_one_spike_of_a_pixel_into_its_step():
    raster = Latency(10, threshold=0.2)(torch.tensor([[1.0, 0.75, 0.3, 0.2]]))
    assert raster.shape == (10, 1, 4)
    assert raster[:, 0].nonzero().tolist() == [[0, 0], [2, 1], [7, 2]]


def test_stepwise_is_the_module_in_every_step():
    module = Stepwise(nn.Conv2d(2, 3, 3))
    x = torch.randn(4, 5, 2, 6, 6)
    expected = torch.stack([module.module(x_t) for x_t in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    same = x[0].expand(4, *x[0].shape)
    assert torch.equal(module(same), module(x[:1]).expand(4, -1, -1, -1, -1))
    assert module(same).stride(0) == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5])
def test_linear_is_that_of_torch_for_sparse_and_dense_input(density, bias):
    torch.manual_seed(0)
    layer = Linear(30, 70, bias, dtype=torch.float64)
    x = torch.randn(6, 5, 30, dtype=torch.float64) * (torch.rand(6, 5, 30) < density)
    for inputs in (x, x.clone().requires_grad_()):
        found, expected = layer(inputs), F.linear(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # rounding of sums
        cotangent = torch.randn_like(found)
        gradients = [torch.autograd.grad((y * cotangent).sum(), list(layer.parameters())) for y in (found, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # rounding of sums


def test_dropout_leaves_neurons_out_in_all_steps():
    torch.manual_seed(0)
    x = torch.rand(5, 4, 100) + 0.5
    y = Dropout(0.25)(x)
    kept = (y != 0).all(0)
    assert torch.equal(kept, (y != 0).any(0))
    torch.testing.assert_close(y[:, kept], x[:, kept] / 0.75)
    assert 0.65 < float(kept.float().mean()) < 0.85  # 400 draws: 0.75 +- 0.02
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(Dropout(0.25).eval()(x), x)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        Dropout(1.0)


def test_first_spike_step_and_its_gradient():
    raster = torch.zeros(4, 1, 3, dtype=torch.float64)
    raster[1, 0, 0] = raster[3, 0, 0] = raster[0, 0, 1] = 1.0
    raster.requires_grad_()
    step = first_spike_step(raster)
    assert step.tolist() == [[1.0, 0.0, 4.0]]
    (gradient,) = torch.autograd.grad(step.sum(), raster)
    # the polynomial is linear in each entry, so the derivative is the difference that flipping it makes
    assert gradient[:, 0, 0].tolist() == [-1.0, -2.0, 0.0, 0.0]
    assert gradient[:, 0, 1].tolist() == [-4.0, 0.0, 0.0, 0.0]
    assert gradient[:, 0, 2].tolist() == [-4.0, -3.0, -2.0, -1.0]


def test_losses_by_hand():
    raster = torch.zeros(4, 2, 3)
    raster[:2, 0, 0] = raster[1:, 1, 2] = raster[0, 1, 1] = 1.0  # rates (1/2, 0, 0) and (0, 1/4, 3/4)
    target = torch.tensor([0, 1])
    assert float(RateMSE()(raster, target)) == pytest.approx((0.25 + 0.5625 + 0.5625) / 6)
    assert RateMSE().predict(raster).tolist() == [0, 2]
    expected = -(5 - math.log(math.exp(5) + 2)) - (2.5 - math.log(1 + math.exp(2.5) + math.exp(7.5)))
    assert float(RateCrossEntropy(gain=10.0)(raster, target)) == pytest.approx(expected / 2, rel=1e-6)
    expected = math.log(1 + 2 * math.exp(-2.0)) + math.log(1 + math.exp(-2.0) + math.exp(-0.5))
    assert float(FirstSpikeStep(tau=2.0)(raster, target)) == pytest.approx(expected / 2, rel=1e-6)
    assert FirstSpikeStep().predict(raster).tolist() == [0, 1]
    assert FirstSpikeStep().predict(torch.zeros(4, 1, 3)).tolist() == [-1]
    potential = torch.tensor([[[1.0, 0.0]], [[-1.0, 3.0]]])
    assert float(MaxPotential()(potential, torch.tensor([0]))) == pytest.approx(math.log(1 + math.exp(2.0)), rel=1e-6)
    assert MaxPotential().predict(potential).tolist() == [1]
    with pytest.raises(ValueError, match=r"target must lie in \[0, 3\)"):
        RateMSE()(raster, torch.tensor([0, 3]))


SOLVER = Steps(Arctan(), detach_reset=False)
NEURON = functools.partial(leaky_integrate_and_fire, tau=2.0, v_th=1.0, v_reset=0.0)


@pytest.mark.parametrize("objective", [RateMSE(), RateCrossEntropy(), FirstSpikeStep(), MaxPotential()])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_objective_trains_every_network(objective, steps):
    torch.manual_seed(0)
    images, target = torch.rand(6, 8, 8), torch.randint(3, (6,))
    for network in (
        rate_fully_connected(64, 3, objective, NEURON, SOLVER, hidden=[20], bias=True, dropout=0.2),
        rate_convolutional(
            64, 3, objective, NEURON, SOLVER, image=[1, 8, 8], channels=[4, 5], kernel_size=3, hidden=[10], dropout=0.2
        ),
    ):
        output = network(Direct(steps)(images))
        objective(output, target).backward()
        assert objective.predict(output).shape == (6,)
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        assert any(p.grad.abs().max() > 0 for p in network.parameters())


def test_networks_check_their_parts():
    sizes = {"image": [1, 8, 8], "channels": [4], "kernel_size": 3, "hidden": [], "dropout": 0.0}
    with pytest.raises(ValueError, match="a rate-coded model needs solver=steps"):
        rate_fully_connected(64, 3, RateMSE(), NEURON, EventDriven(40.0), hidden=[], bias=True, dropout=0.0)
    with pytest.raises(ValueError, match="a rate-coded model needs neuron=lif_steps or if_steps"):
        rate_fully_connected(64, 3, RateMSE(), CurrentLIF(), SOLVER, hidden=[], bias=True, dropout=0.0)
    for change, message in (
        ({"image": [1, 8, 9]}, "model.image must be channels, height and width of the 64 inputs"),
        ({"kernel_size": 4}, "model.kernel_size must be odd, got 4"),
        ({"channels": [2, 2, 2, 2]}, "model.channels must be at most 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            rate_convolutional(64, 3, RateMSE(), NEURON, SOLVER, **{**sizes, **change})


def test_the_monitor_records_and_changes_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(Linear(5, 4), LIF(), Linear(4, 3), IF(v_reset=None))
    x = 3 * torch.rand(7, 6, 5)
    expected = network(x)
    with Monitor(network, ["1", "3"]) as monitor:
        assert torch.equal(network(x[:, :2]), expected[:, :2])
        network(x[:, 2:])
    assert np.array_equal(monitor.spikes["3"], expected.detach().numpy())
    assert monitor.potential["1"].shape == (7, 6, 4)
    assert np.array_equal(monitor.potential["1"] >= 1.0, monitor.spikes["1"] > 0)
    network(x)
    assert monitor.spikes["3"].shape == (7, 6, 3)  # no longer recording
    with pytest.raises(ValueError, match=r"layers must be among \['1', '3'\], got \['2'\]"):
        Monitor(network, ["2"])


def test_the_monitor_of_current_based_neurons():
    torch.manual_seed(0)
    solver = SurrogateTimeStepped(30.0, 1.0)
    network = fully_connected(5, 3, MeanVoltage(), CurrentLIF(), solver, hidden=[4], dtype=torch.float64)
    spikes = random_spikes(6, 5)
    with Monitor(network) as monitor:
        network(spikes)
    assert monitor.spikes["0"].sum() == network[0](spikes).count().sum()
    assert np.array_equal(monitor.potential["0"] >= 1.0, monitor.spikes["0"] > 0)
    exact = nn.Sequential(SpikingLinear(5, 4, solver=TimeStepped(30.0, 1.0)))
    with pytest.raises(TypeError, match="layer '0' must be an IF, an LIF or solved by SurrogateTimeStepped"):
        Monitor(exact)


def test_alignment_by_hand():
    exact = {"0.weight": torch.tensor([[3.0, 4.0]]).double()}
    (row,) = align({"0.weight": torch.tensor([[8.0, 6.0]]).double()}, exact)
    assert row.layer == "0.weight"
    assert row.cosine == pytest.approx(0.96)
    assert row.relative_norm == pytest.approx(2.0)


def test_gradients_of_batches_are_those_of_the_whole():
    torch.manual_seed(0)
    solver = SurrogateTimeStepped(30.0, 1.0)
    network = fully_connected(5, 3, MeanVoltage(), CurrentLIF(), solver, hidden=[4], dtype=torch.float64)
    spikes, target = random_spikes(7, 5), torch.randint(3, (7,))
    rows = torch.arange(7).split(3)
    whole = gradients(network, F.cross_entropy, [(spikes, target)])
    parts = gradients(network, F.cross_entropy, [(spikes.select(r), target[r]) for r in rows])
    for row in align(parts, whole):
        assert row.cosine == pytest.approx(1.0, abs=1e-12)
        assert row.relative_norm == pytest.approx(1.0, abs=1e-12)
