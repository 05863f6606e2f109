"""Deferred initialisation: modules built on the meta device become what they would have been."""

from __future__ import annotations

import importlib
import math
import pkgutil

import pytest
import torch
from conftest import random_spikes
from torch import nn

import eventprop
from eventprop import (  # fmt: skip
    AveragePool2d,
    BackgroundSpikes,
    BiasSpike,
    Delay,
    DelayedSpikingLinear,
    EarliestSpikePool2d,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    ShiftImage,
    SpikeDropout,
    SpikeTimeJitter,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)
from eventprop.losses import FirstSpike
from eventprop.training.networks import fully_connected
from surrogate_baseline.layers import Linear

EXACT, GRID = EventDriven(40.0), TimeStepped(40.0, 1.0)


def learnable(**factory) -> LearnableLIF:
    return LearnableLIF(4, bias=0.3, refractory=1.0, learn=["tau_mem", "bias"], **factory)


# each takes ``device`` and ``dtype``, and makes a module for 9 inputs of the shape (1, 3, 3)
MODULES = {
    "SpikingLinear": lambda **f: SpikingLinear(9, 4, solver=EXACT, **f),
    "SpikingLinear of LearnableLIF": lambda **f: SpikingLinear(9, 4, neuron=learnable(**f), solver=EXACT, **f),
    "SpikingRecurrent": lambda **f: SpikingRecurrent(9, 4, solver=EXACT, recurrent_std=0.7, **f),
    "SpikingConv2d": lambda **f: SpikingConv2d(1, 4, 2, solver=EXACT, **f),
    "SpikingLayer": lambda **f: SpikingLayer(nn.Linear(9, 4, bias=False, **f), solver=GRID),
    "LeakyReadout": lambda **f: LeakyReadout(9, 4, solver=EXACT, reduce="mean", **f),
    "LeakyReadout, samples": lambda **f: LeakyReadout(9, 4, solver=EXACT, reduce="samples", times=[0.1, 40.0], **f),
    "LeakyReadout, learn_tau": lambda **f: LeakyReadout(9, 4, solver=EXACT, learn_tau=True, **f),
    "Delay": lambda **f: Delay(9, **f),
    "DelayedSpikingLinear": lambda **f: DelayedSpikingLinear(9, 4, solver=EXACT, mean_delay=2.0, **f),
    "LearnableLIF, shared": lambda **f: nn.ModuleList([LearnableLIF(3, shared=True, **f)]),
    "BiasSpike": lambda **f: BiasSpike(3.0),
    "AveragePool2d": lambda **f: AveragePool2d(2),
    "EarliestSpikePool2d": lambda **f: EarliestSpikePool2d(2),
    "SpikeDropout": lambda **f: SpikeDropout(0.0),
    "SpikeTimeJitter": lambda **f: SpikeTimeJitter(1e-9).eval(),
    "ShiftImage": lambda **f: ShiftImage(1).eval(),
    "BackgroundSpikes": lambda **f: BackgroundSpikes(0.1, 40.0).eval(),
    "network": lambda **f: fully_connected(9, 2, FirstSpike(), eventprop.LIF(), EXACT, hidden=[5], mean_delay=1.0, **f),
    "Linear of the baseline": lambda **f: Linear(9, 70, **f),
}


def reset(module: nn.Module) -> nn.Module:
    """As deferred initialisation does it, with the torch seed 0."""
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


def built(make, device: str) -> nn.Module:
    torch.manual_seed(0)
    return make(device=device, dtype=torch.float64)


def within_context(make) -> nn.Module:
    with torch.device("meta"):
        return make(dtype=torch.float64)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("on_meta", [lambda make: built(make, "meta"), within_context], ids=["device=", "context"])
def test_a_module_that_is_built_on_meta_becomes_what_it_would_have_been(make, on_meta):
    deferred, expected = on_meta(make), built(make, "cpu")
    assert all(tensor.is_meta for tensor in deferred.state_dict().values())
    deferred.to_empty(device="cpu")
    for tensor in deferred.state_dict().values():
        tensor.fill_(math.nan)  # what empty memory may hold
    reset(deferred)
    # a SpikingLayer keeps the weights that its synapses come with; a network is built from its end
    if not isinstance(expected, (SpikingLayer, nn.Sequential)):
        torch.testing.assert_close(deferred.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(deferred.state_dict(), reset(expected).state_dict(), rtol=0, atol=0)
    assert repr(deferred) == repr(expected)
    if not isinstance(deferred, (nn.ModuleList, Linear)):
        spikes = random_spikes(2, 9).reshape(1, 3, 3)
        one, two = deferred(spikes), expected(spikes)
        torch.testing.assert_close(*(x if isinstance(x, torch.Tensor) else x.time for x in (one, two)), rtol=0, atol=0)


def test_no_module_is_left_out():
    kinds = set()
    for package in (eventprop.core, eventprop.layers):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            module = importlib.import_module(info.name)
            kinds |= {x for x in vars(module).values() if isinstance(x, type) and issubclass(x, nn.Module)}
    tested = {type(part) for make in MODULES.values() for part in built(make, "cpu").modules()}
    assert {kind.__name__ for kind in kinds - tested if not kind.__name__.startswith("_")} == {"SpikingModule"}


def test_times_keep_their_precision_and_must_have_values():
    readout = LeakyReadout(2, 3, solver=EXACT, reduce="samples", times=[0.1], dtype=torch.float64)
    assert readout.times.tolist() == [0.1]
    with torch.no_grad():
        readout.times.zero_()
    readout.reset_parameters()
    assert readout.times.tolist() == [0.1]
    with pytest.raises(ValueError, match="times must have values, got a tensor on the meta device"):
        LeakyReadout(2, 3, solver=EXACT, reduce="samples", times=torch.zeros(1, device="meta"))


def test_resetting_draws_all_weights_anew():
    for make, name in (
        (MODULES["SpikingRecurrent"], "recurrent_weight"),
        (MODULES["DelayedSpikingLinear"], "raw_delay"),
    ):
        module = built(make, "cpu")
        before = getattr(module, name).clone()
        module.reset_parameters(mean=1.0)
        assert not torch.equal(getattr(module, name), before)
