"""Modules: parameters, initialisation, copies and refusals."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import random_spikes, smooth

from eventprop import LIF, EventDriven, LeakyReadout, Spikes, SpikingLinear, TimeStepped

SOLVER = EventDriven(t_end=40.0)


def test_state_dict_holds_the_weight_only():
    layer = SpikingLinear(3, 2, solver=SOLVER)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.weight.shape == (2, 3)
    assert [p.shape for p in LeakyReadout(3, 2, solver=SOLVER).parameters()] == [(2, 3)]


@pytest.mark.parametrize("kind", [SpikingLinear, LeakyReadout])
def test_copies_are_independent_and_equal(kind):
    layer, spikes = kind(6, 4, solver=SOLVER, dtype=torch.float64), random_spikes(2, 6)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = kind(6, 4, solver=SOLVER, dtype=torch.float64)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other.weight, layer.weight)
        assert other.weight.is_contiguous()
        one, two = layer(spikes), other(spikes)
        assert torch.equal(*(x.time if isinstance(x, Spikes) else x for x in (one, two)))
        with torch.no_grad():
            other.weight.zero_()
        assert layer.weight.any()


def test_repr_tells_what_it_is():
    text = repr(LeakyReadout(3, 2, neuron=LIF(10.0, 2.0), solver=SOLVER, reduce="mean"))
    assert text == (
        "LeakyReadout(3, 2, neuron=LIF(tau_mem=10.0, tau_syn=2.0, v_th=1.0), solver=EventDriven(t_end=40.0, "
        "grazing='raw', min_slope=0.001, backend='auto'), reduce='mean')"
    )


@pytest.mark.parametrize("neuron", [LIF(20.0, 5.0), LIF(10.0, 10.0), LIF(10.0, 20.0, v_th=0.1)])
@pytest.mark.parametrize("share", [0.16, 1.0])
def test_initial_weights_make_neurons_fire_in_every_layer(neuron, share):
    """Each layer of 784-350-350: most neurons fire for some sample, and none floods the next."""
    torch.manual_seed(0)
    times = torch.rand(32, 784) * 20
    times[torch.rand(32, 784) > share] = float("inf")
    spikes = Spikes.from_times(times)
    for m, n in ((784, 350), (350, 350)):
        spikes = SpikingLinear(m, n, neuron=neuron, solver=EventDriven(60.0))(spikes)
        count = spikes.count()
        assert (count.sum(0) > 0).float().mean() > 0.5
        assert 0.05 < count.float().mean() < 20


def test_initial_weights_follow_the_rule():
    torch.manual_seed(0)
    layer = SpikingLinear(400, 300, solver=SOLVER).requires_grad_(False)
    unit = layer.neuron.minimum_weight
    assert float(layer.weight.std()) == pytest.approx(2.0 * unit / 20, rel=0.02)  # 120,000 draws: 0.2 % is one sigma
    assert float(layer.weight.mean()) == pytest.approx(0.5 * unit / 400, abs=4 * 2.0 * unit / 20 / 120_000**0.5)


def test_half_precision_under_autocast_is_not_used():
    readout, spikes = LeakyReadout(6, 4, solver=SOLVER, reduce="mean"), random_spikes(2, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = readout(spikes)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, readout(spikes))


def test_a_grid_does_not_use_half_precision_under_autocast(backend):
    """The backward pass lies outside, as torch recommends."""
    torch.manual_seed(0)
    layer = SpikingLinear(6, 4, solver=TimeStepped(40.0, 1.0, backend=backend))
    spikes = random_spikes(2, 6, dtype=torch.float32)
    layer.reset_parameters(1.0, 3.0)
    gradients = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            train = layer(spikes)
        assert train.time.dtype == torch.float32
        gradients.append(torch.autograd.grad(smooth(train), layer.weight)[0])
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="solver must be an EventDriven or a TimeStepped, got float"):
        SpikingLinear(3, 2, solver=40.0)
    with pytest.raises(TypeError, match="neuron of a SpikingLinear must be LIF or LearnableLIF, got dict"):
        SpikingLinear(3, 2, solver=SOLVER, neuron={})
    with pytest.raises(ValueError, match="in_features must be >= 1, got 0"):
        SpikingLinear(0, 2, solver=SOLVER)
    with pytest.raises(TypeError, match="out_features must be an int"):
        SpikingLinear(3, 2.0, solver=SOLVER)
    with pytest.raises(TypeError, match="dtype must be torch.float32 or torch.float64, got torch.float16"):
        SpikingLinear(3, 2, solver=SOLVER, dtype=torch.float16)
    with pytest.raises(ValueError, match="reduce must be one of"):
        LeakyReadout(3, 2, solver=SOLVER, reduce="last")
