"""Parameters and buffers that are NaN, infinite or out of range are refused by name, before a wrong number leaves a module."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
import re

import pytest
import torch
from torch import nn

import eventprop
import surrogate_baseline
from eventprop import (
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
    Spikes,
    SpikeTimeJitter,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)
from eventprop.layers.linear import SpikingModule
from surrogate_baseline.layers import Dropout, Linear, Stepwise
from surrogate_baseline.neurons import IF, Potential
from surrogate_baseline.neurons import LIF as StepLIF
from surrogate_baseline.solver import SurrogateTimeStepped

T_END = 40.0
# the input of all layers: every neuron spikes in both samples, and again long before the end
ARRIVALS = Spikes.from_times(torch.tensor([[[0.0, 9.0], [1.0, 8.0]], [[2.0, 7.0], [0.5, 9.0]]]))
IMAGE = ARRIVALS.reshape(1, 1, 2)
STEPS = torch.ones(5, 2, 2)  # [T, B, M]

EXACT = {
    "event": EventDriven(T_END),
    "event torch": EventDriven(T_END, backend="torch"),
    "grid": TimeStepped(T_END, 0.5),
    "grid torch": TimeStepped(T_END, 0.5, backend="torch"),
}
SOLVERS = EXACT | {
    "euler": TimeStepped(T_END, 0.5, "euler"),
    "euler torch": TimeStepped(T_END, 0.5, "euler", backend="torch"),
    "surrogate": SurrogateTimeStepped(T_END, 0.5),
}
GENERAL = {name: solver for name, solver in EXACT.items() if name != "event torch"}  # LearnableLIF needs numba there
GRIDS = {name: solver for name, solver in SOLVERS.items() if isinstance(solver, TimeStepped)}
LONG = {"long": EventDriven(1e6), "long torch": EventDriven(1e6, backend="torch")}  # after the last arrival
REDUCES = {"max": {}, "mean": {}, "weighted": {"tau_weight": 10.0}, "samples": {"times": [10.0, 20.0]}}


def learnable(learn: tuple[str, ...] = ("tau_mem", "tau_syn", "v_th", "bias")) -> LearnableLIF:
    return LearnableLIF(2, learn=learn)


def stepwise() -> nn.Module:
    return nn.Sequential(nn.Unflatten(2, (1, 1, 2)), Stepwise(nn.Conv2d(1, 2, 1)), IF())


# for each module of the packages, what makes one and its input; a new module needs a line here
MODULES = {
    SpikingLinear: [
        *((key, lambda s=s: SpikingLinear(2, 2, solver=s), ARRIVALS) for key, s in (SOLVERS | LONG).items()),
        *((key, lambda s=s: SpikingLinear(2, 2, solver=s, neuron=learnable()), ARRIVALS) for key, s in GENERAL.items()),
    ],
    LearnableLIF: [("buffers", lambda: SpikingLinear(2, 2, solver=EXACT["event"], neuron=learnable(())), ARRIVALS)],
    SpikingRecurrent: [
        *((key, lambda s=s: SpikingRecurrent(2, 2, solver=s, delay=4.0), ARRIVALS) for key, s in EXACT.items()),
        *(("no delay", lambda s=s: SpikingRecurrent(2, 2, solver=s, delay=0.0), ARRIVALS) for s in [EXACT["event"]]),
        *((key, lambda s=s: SpikingRecurrent(2, 2, solver=s, delay=4.0, neuron=learnable()), ARRIVALS)
          for key, s in GENERAL.items()),
    ],
    DelayedSpikingLinear: [
        *((key, lambda s=s: DelayedSpikingLinear(2, 2, solver=s), ARRIVALS) for key, s in EXACT.items()),
        *((key, lambda s=s: DelayedSpikingLinear(2, 2, solver=s, neuron=learnable()), ARRIVALS)
          for key, s in GENERAL.items()),
    ],
    Delay: [("float32", lambda: Delay(2), ARRIVALS), ("float64", lambda: Delay(2).double(), ARRIVALS.to(torch.float64))],
    SpikingConv2d: [(key, lambda s=s: SpikingConv2d(1, 2, (1, 2), solver=s), IMAGE) for key, s in SOLVERS.items()],
    SpikingLayer: [
        (key, lambda s=s: SpikingLayer(nn.Linear(2, 2, bias=False), solver=s), ARRIVALS) for key, s in GRIDS.items()
    ],
    LeakyReadout: [
        *((f"{key} {reduce}", lambda s=s, r=reduce: LeakyReadout(2, 2, solver=s, reduce=r, **REDUCES[r]), ARRIVALS)
          for (key, s), reduce in itertools.product(EXACT.items(), REDUCES)),
        *((f"{key} {reduce} tau", lambda s=s, r=reduce: LeakyReadout(2, 2, solver=s, reduce=r, learn_tau=True, **REDUCES[r]),
           ARRIVALS) for (key, s), reduce in itertools.product(EXACT.items(), REDUCES)),
        *((f"{key} {reduce}", lambda s=s, r=reduce: LeakyReadout(2, 2, solver=s, reduce=r), ARRIVALS)
          for (key, s), reduce in itertools.product((SOLVERS | LONG).items(), ("max", "mean")) if key not in EXACT),
    ],
    Linear: [
        ("dense", lambda: nn.Sequential(Linear(2, 2), IF()), STEPS),
        ("wide", lambda: nn.Sequential(Linear(2, 64), StepLIF()), torch.eye(5, 2)[:, None].expand(5, 2, 2) * 1.0),
        ("readout", lambda: nn.Sequential(Linear(2, 2), Potential(IF())), STEPS),
    ],
    Stepwise: [("convolution", stepwise, STEPS)],
    # without parameters
    BiasSpike: [("", BiasSpike, ARRIVALS)],
    SpikeDropout: [("", lambda: SpikeDropout(0.5), ARRIVALS)],
    SpikeTimeJitter: [("", lambda: SpikeTimeJitter(0.1), ARRIVALS)],
    ShiftImage: [("", ShiftImage, IMAGE)],
    BackgroundSpikes: [("", lambda: BackgroundSpikes(0.1, T_END), ARRIVALS)],
    EarliestSpikePool2d: [("", lambda: EarliestSpikePool2d((1, 2)), IMAGE)],
    AveragePool2d: [("", lambda: AveragePool2d((1, 2)), IMAGE)],
    IF: [("", IF, STEPS)],
    StepLIF: [("", StepLIF, STEPS)],
    Potential: [("", lambda: Potential(IF()), STEPS)],
    Dropout: [("", lambda: Dropout(0.5), STEPS)],
}  # fmt: skip


def build(make) -> nn.Module:
    """A module whose neurons all fire."""
    torch.manual_seed(0)
    module = make()
    for name, parameter in module.named_parameters():
        if name.endswith("weight") and "recurrent" not in name:
            parameter.data.fill_(8.0)
    return module


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))


CASES = [
    pytest.param(make, given, name, id=f"{kind.__name__} {key} {name}")
    for kind, rows in MODULES.items()
    for key, make, given in rows
    for name in tensors(make())
]


def poisoned(module: nn.Module, name: str, value: float, everywhere: bool, how: str) -> nn.Module:
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    flat = state[name].reshape(-1)
    flat[slice(None) if everywhere else slice(0, 1)] = value
    state[name] = flat.reshape(state[name].shape)
    if how == "load_state_dict":
        module.load_state_dict(state)
    else:
        with torch.no_grad():
            tensors(module)[name].copy_(state[name])
    return module


def modules_of(package) -> set[type]:
    """The modules that a package defines, without those that only others derive from."""
    found = set()
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if info.name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(kind, nn.Module) and kind.__module__.startswith(package.__name__):
                found.add(kind)
    return {kind for kind in found if not kind.__name__.startswith("_") and kind is not SpikingModule}


def test_every_module_of_the_packages_is_here():
    assert modules_of(eventprop) | modules_of(surrogate_baseline) == set(MODULES)


@pytest.mark.parametrize(("make", "given", "name"), CASES)
def test_what_is_not_finite_is_refused_by_name(make, given, name):
    module = build(make)
    module(given)  # as it is, it works
    entries = tensors(module)[name].numel()
    for value, everywhere, how in itertools.product(
        (math.nan, math.inf, -math.inf), (False, True), ("in place", "load_state_dict")
    ):
        with pytest.raises(ValueError, match=r"must be finite") as raised:
            poisoned(build(make), name, value, everywhere, how)(given)
        message = str(raised.value)
        if "conv" in name or "module" in name:  # of torch's own module: the neurons behind it refuse
            continue
        count = entries if everywhere else 1
        assert re.match(rf"\w+\.([\w.]+\.)?{name.split('.')[-1]} must be finite", message), message
        assert f"{count} of its {entries} entries" in message, message
        assert "learning rate" in message


@pytest.mark.parametrize("value", [1e3, -1e3])
@pytest.mark.parametrize("name", ["log_tau_mem", "log_tau_syn", "log_v_th"])
@pytest.mark.parametrize("kind", [SpikingLinear, LeakyReadout])
def test_logarithms_whose_exponentials_are_zero_or_infinite(kind, name, value):
    if kind is SpikingLinear:
        layer = SpikingLinear(2, 2, solver=EXACT["grid"], neuron=learnable())
        owner = layer.neuron
    elif name == "log_v_th":
        return
    else:
        owner = layer = LeakyReadout(2, 2, solver=EXACT["grid"], learn_tau=True, reduce="mean")
    tensors(owner)[name].data.reshape(-1)[0] = value
    with pytest.raises(ValueError, match=rf"{type(owner).__name__}\.{name} must be finite and lie in \[-87"):
        layer(ARRIVALS)


@pytest.mark.parametrize("times", [[10.0, 41.0], [-1.0, 10.0]])
def test_times_of_a_readout_that_are_loaded_or_assigned(times):
    readout = LeakyReadout(2, 2, solver=EXACT["event"], reduce="samples", times=[10.0, 20.0])
    other = LeakyReadout(2, 2, solver=EventDriven(50.0), reduce="samples", times=[10.0, 41.0])
    readout.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"times must lie in \[0, t_end=40.0\], got \[10.0, 41.0\]"):
        readout(ARRIVALS)
    readout.times = torch.tensor(times)
    with pytest.raises(ValueError, match=r"times must lie in \[0, t_end=40.0\], got"):
        readout(ARRIVALS)
    readout.times = torch.tensor([times])
    with pytest.raises(ValueError, match="times must be a row of numbers"):
        readout(ARRIVALS)


def test_finite_weights_that_make_infinite_potentials():
    layer = SpikingLinear(2, 2, solver=EXACT["grid torch"])
    layer.weight.data.fill_(3e38)
    with pytest.raises(
        ValueError, match="weight must be finite: it gives a membrane potential that is NaN or infinite"
    ):
        layer(Spikes.from_times(torch.zeros(1, 2)))


def test_a_hard_reset_does_not_hide_an_infinite_potential():
    with pytest.raises(ValueError, match="must be finite"):
        IF()(torch.tensor([math.inf, 0.0, 0.0]).reshape(3, 1, 1))


@pytest.mark.parametrize("key", ["event", "event torch", "grid"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_no_spike_meets_have_no_effect(key, value):
    """So they are not looked for, which would take time; the output and all gradients are those without them."""
    results = []
    for weight in (1.0, value):
        layer = build(lambda: SpikingLinear(2, 2, solver=EXACT[key]))
        layer.weight.data[:, 1] = weight
        arrivals = Spikes(torch.tensor([[1.0, 3.0]], requires_grad=True), torch.zeros(1, 2, dtype=torch.long), 2)
        output = layer(arrivals)
        output.time.sum().backward()
        results.append((output.time.detach(), layer.weight.grad, arrivals.time.grad))
    assert results[0][0].numel()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
