"""``report``: what it measures, what it advises, and that it changes nothing."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from eventprop import (
    LIF,
    Delay,
    EventDriven,
    LeakyReadout,
    SpikeDropout,
    Spikes,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    first_spike_cross_entropy,
    latency_encode,
    report,
)
from surrogate_baseline.layers import Linear
from surrogate_baseline.neurons import LIF as RateLIF
from surrogate_baseline.solver import SurrogateTimeStepped

EXACT = EventDriven(40.0)
SOLVERS = [EXACT, TimeStepped(40.0, 1.0), SurrogateTimeStepped(40.0, 1.0)]
TARGET = torch.arange(16) % 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(size: int = 12) -> torch.Tensor:
    return torch.rand(16, 1, size, size) * (torch.rand(16, 1, size, size) < 0.3)


def network(solver=EXACT, neuron: LIF | None = None) -> nn.Sequential:
    sizes = {"neuron": neuron, "solver": solver}
    return nn.Sequential(
        SpikingLinear(144, 50, **sizes), SpikingLinear(50, 30, **sizes), LeakyReadout(30, 3, solver=solver)
    )


def cross_entropy(out: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out, TARGET)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_network_that_is_just_initialised_needs_nothing(solver):
    found = report(network(solver), latency_encode(images()), cross_entropy)
    assert found.advice == ()
    assert [row.kind for row in found.layers] == ["Spikes", "SpikingLinear", "SpikingLinear"]
    assert str(found).endswith("- nothing to do")


def late(out: Spikes | torch.Tensor) -> torch.Tensor:
    return out.time[out.index >= 0].sum() if isinstance(out, Spikes) else out.sum()


def test_layers_of_all_kinds_need_nothing():
    grid = TimeStepped(40.0, 1.0)
    networks = [
        nn.Sequential(SpikingConv2d(1, 8, 3, 2, solver=EXACT), LeakyReadout(200, 3, solver=EXACT, learn_tau=True)),
        nn.Sequential(
            SpikingRecurrent(144, 20, solver=EXACT), SpikeDropout(0.2), Delay(20), SpikingLinear(20, 9, solver=EXACT)
        ),
        nn.Sequential(SpikingLayer(nn.Linear(144, 20, bias=False), solver=grid), LeakyReadout(20, 3, solver=grid)),
    ]  # fmt: skip
    networks[2][0].reset_parameters()
    rows = []
    for network in networks:
        found = report(network, latency_encode(images()), late)
        assert found.advice == ()
        rows.append([row.kind for row in found.layers] + [row.kind for row in found.readouts])
    assert rows == [
        ["Spikes", "SpikingConv2d", "LeakyReadout"],
        ["Spikes", "SpikingRecurrent", "SpikeDropout", "Delay", "SpikingLinear"],
        ["Spikes", "SpikingLayer", "LeakyReadout"],
    ]


def test_what_it_measures():
    net, spikes = network(), latency_encode(images())
    found = report(net, spikes, cross_entropy)
    hidden = net[0](spikes)
    counts, row = hidden.count(), found.layers[1]
    assert (row.name, row.neurons) == ("0", 50)
    assert row.spikes == pytest.approx(float(counts.double().mean()))
    assert row.silent == pytest.approx(float((counts.sum(0) == 0).double().mean()))
    assert row.empty == pytest.approx(float((counts.sum(1) == 0).double().mean()))
    assert row.smallest_slope == float(hidden.slope[hidden.index >= 0].min())
    assert row.grazing == 0.0
    out = net(spikes)
    low, high = out.detach().aminmax()
    assert (found.readouts[0].lowest, found.readouts[0].highest) == (float(low), float(high))
    cross_entropy(out).backward()
    assert found.loss == float(cross_entropy(out).detach())
    assert [row.gradient for row in found.gradients] == [float(p.grad.norm()) for p in net.parameters()]
    text = str(found)
    assert len({len(line) for line in text.splitlines()[:4]}) == 1  # aligned
    assert "2 LeakyReadout: potentials from" in text
    assert report(net, spikes).loss is None


def test_it_changes_nothing():
    net = nn.Sequential(parametrizations.spectral_norm(network()[0]), SpikeDropout(0.5), network()[1], network()[2])
    net[2].weight.grad = torch.ones_like(net[2].weight)
    net[3].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes, spikes, random = [m.training for m in net.modules()], latency_encode(images()), torch.get_rng_state()
    report(net, spikes, cross_entropy)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
    assert modes == [m.training for m in net.modules()]
    assert not any(m._forward_hooks for m in net.modules())
    assert net[3].weight.grad is None
    assert net[2].weight.grad.eq(1.0).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_weak_weights_are_named_and_the_advice_helps(solver):
    """The cases of orthogonal and spectral_norm: every neuron is silent, and the loss stands still without a word."""
    spikes, net = latency_encode(images()), network(solver)
    for layer in net[:2]:
        nn.init.orthogonal_(layer.weight)
    found = report(net, spikes, cross_entropy)
    assert [row.silent for row in found.layers[1:]] == [1.0, 1.0]
    assert [row.gradient for row in found.gradients[:2]] == [0.0, 0.0]
    for k, line in enumerate(found.advice):
        assert line.startswith(
            f"{k} SpikingLinear: 100% of its neurons are silent, and silence has no exact gradient; its weights are"
        )
        assert "reset_parameters()" in line
        factor = int(re.search(r"multiply the weights by (\d+)$", line).group(1))
        net[k].weight.data.mul_(factor)
    assert len(found.advice) == 2
    assert report(net, spikes).advice == ()


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_weights_whose_size_is_fixed_need_a_lower_threshold(norm):
    spikes, net = latency_encode(images()), network()
    for layer in net[:2]:
        norm(layer)
    found = report(net, spikes)
    assert len(found.advice) == 2
    for layer, line in zip(net[:2], found.advice, strict=True):
        factor = int(re.search(r"so divide v_th and the solver's min_slope by (\d+)$", line).group(1))
        layer.neuron, layer.solver = LIF(v_th=1.0 / factor), EventDriven(40.0, min_slope=1e-3 / factor)
    assert report(net, spikes).advice == ()


def only(found) -> str:
    (line,) = found.advice
    return line


def test_other_reasons_are_named():
    net, spikes = network(), latency_encode(images())
    late = only(report(net[1], Spikes.from_times(torch.linspace(20.0, 60.0, 50).expand(16, 50))))
    assert late.startswith("SpikingLinear: 50% of its input comes after t_end=40.0, without effect")
    nothing = Spikes.from_times(torch.full((2, 144), math.inf))
    assert (
        "0 SpikingLinear: 100% of its neurons are silent, and silence has no exact gradient; it receives no spikes"
        in str(report(net, nothing))
    )
    inhibited = network()
    inhibited[0].weight.data.abs_().neg_()
    assert (
        "raise the weights, reset_parameters(mean=...), or add losses.silent_margin"
        in report(inhibited, spikes).advice[0]
    )
    busy = network()[:1]
    busy[0].weight.data.abs_().mul_(10.0)
    assert "lower the weights, or add losses.spike_count_penalty(high=...)" in only(report(busy, spikes))
    quiet = SpikingLinear(144, 3, solver=EXACT)
    quiet.weight.data.fill_(-1.0)[0] = 4.0
    few = Spikes.from_times(torch.where(torch.arange(16)[:, None] < 4, spikes.to_times(1).squeeze(2), math.inf))
    assert "in 75% of the samples no output neuron fires" in only(report(quiet, few))
    broken = network()
    broken[1].weight.data[0, 0] = math.nan
    assert only(report(broken, spikes)).startswith("1.weight: NaN or infinite; go back to an earlier state")


def grazing_layer(solver) -> SpikingLinear:
    layer = SpikingLinear(1, 1, solver=solver, dtype=torch.float64)
    layer.weight.data.fill_(layer.neuron.minimum_weight * (1.0 + 1e-9))  # the peak barely reaches the threshold
    return layer


def test_grazing_spikes_are_named_unless_a_policy_is_chosen():
    spikes = Spikes.from_times(torch.zeros(4, 1, dtype=torch.float64))

    def loss(out: Spikes) -> torch.Tensor:
        return out.first_spike_time().sum()

    found = report(grazing_layer(EXACT), spikes, loss)
    assert found.layers[1].grazing == 1.0
    assert found.layers[1].smallest_slope < 1e-3
    assert "100% of its spikes graze the threshold, with gradients that are far too large" in found.advice[0]
    assert found.advice[1].startswith("the gradient of weight is huge, and there are spikes that graze the threshold")
    assert report(grazing_layer(EventDriven(40.0, grazing="drop")), spikes, loss).advice == (
        "the gradient of weight is 0, though neurons fire; the loss does not depend on it",
    )


def test_losses_without_a_gradient_are_named():
    layer, spikes = network()[0], latency_encode(images())
    assert only(report(layer, spikes, lambda out: out.count().double().mean())).startswith("the loss has no gradient")
    both = nn.ModuleDict({"used": layer, "spare": nn.Linear(2, 2)})
    both.forward = lambda x: both["used"](x)
    line = only(report(both, spikes, lambda out: out.time[out.index >= 0].mean()))
    assert line == "the gradient of spare.weight, spare.bias is 0, though neurons fire; the loss does not depend on it"
    frozen = network()[0].requires_grad_(False)
    assert report(frozen, spikes.requires_grad_(), lambda out: out.time[out.index >= 0].sum()).gradients == ()
    infinite = report(layer, spikes, lambda out: (out.first_spike_time() * 0.0).sum()).advice
    assert infinite[0].startswith("the loss is NaN or infinite; the padding of spike times is +inf")
    with pytest.raises(ValueError, match="loss must return a tensor with one element"):
        report(layer, spikes, lambda out: out.time)
    with pytest.raises(ValueError, match="spikes must hold at least one sample"):
        report(layer, spikes[:0])


def test_rasters_of_the_baseline():
    net = nn.Sequential(Linear(20, 30), RateLIF(), Linear(30, 3), RateLIF())
    x = (torch.rand(10, 16, 20) < 0.3).float()
    net[0].weight.data.abs_().mul_(3.0)
    net[2].weight.data.abs_().mul_(3.0)
    assert report(net, x, lambda out: out.mean()).advice == ()
    net[0].weight.data.mul_(0.01)
    net[0].bias.data.zero_()
    found = report(net, x)
    assert [(row.name, row.neurons) for row in found.layers] == [("1", 30), ("3", 3)]
    assert found.layers[0].silent == 1.0
    assert found.advice[0].endswith("no exact gradient; raise the weights in front of it, or lower its v_th")


def test_first_spike_losses_on_a_healthy_network():
    net = nn.Sequential(SpikingLinear(144, 60, solver=EXACT), SpikingLinear(60, 3, solver=EXACT))
    assert report(net, latency_encode(images()), lambda out: first_spike_cross_entropy(out, TARGET)).advice == ()
