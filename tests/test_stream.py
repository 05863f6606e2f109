"""Recordings in chunks of time: the oracle is the same network, given the whole recording at once."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from conftest import diverse, random_layer, random_network, random_spikes, smooth
from torch import nn

from eventprop import (
    LIF,
    AveragePool2d,
    BiasSpike,
    Delay,
    DelayedSpikingLinear,
    EarliestSpikePool2d,
    EventDriven,
    LeakyReadout,
    Spikes,
    SpikingConv2d,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    stream,
)
from eventprop.solvers.support import UnsupportedError

SOLVER = EventDriven(60.0)
F64 = {"dtype": torch.float64}


def cut(spikes: Spikes, borders: list[float]) -> list[Spikes]:
    """The recording in chunks, each of the times from one border to before the next."""

    def between(begin: float, end: float) -> Spikes:
        outside = (spikes.time < begin) | (spikes.time >= end)
        return spikes.reordered(spikes.time.masked_fill(outside, math.inf), spikes.index.masked_fill(outside, -1))

    return [between(*edges) for edges in itertools.pairwise([-math.inf, *borders, math.inf])]


def joined(outputs: list[Spikes]) -> Spikes:
    """All outputs one after the other, as they came."""
    time, index = (torch.cat([getattr(x, name) for x in outputs], 1) for name in ("time", "index"))
    train = outputs[0].reordered(time, index, torch.cat([x.slope for x in outputs], 1))
    at = [output.time.detach() for output in outputs]
    for before, after in itertools.pairwise(at):  # in order, without sorting
        latest = torch.cat(
            [before.masked_fill(before == math.inf, -math.inf), before.new_full((len(before), 1), -9e9)], 1
        )
        assert (after >= latest.amax(1, keepdim=True)).all()
    return train


def recording(inputs: int = 6, dtype=torch.float64) -> Spikes:
    """Spikes from before 0 to after the end of the window, of which some come together, in samples of different lengths."""
    spikes = random_spikes(4, inputs, 4, 55.0, dtype)
    time = spikes.time - 5.0
    time[1] = time[1].round()
    time[2, 9:] = math.inf
    time[3] = math.inf
    time[0, -1] = 70.0
    return spikes.reordered(time, spikes.index.masked_fill(time == math.inf, -1))


def recurrent(neuron, delay: float, inputs: int = 6, outputs: int = 5) -> SpikingRecurrent:
    return random_layer(inputs, outputs, SOLVER, neuron, SpikingRecurrent, delay=delay, recurrent_std=0.5)


def convolutions(pool: nn.Module | None = None) -> nn.Sequential:
    layers = [SpikingConv2d(1, 3, 3, padding=1, solver=SOLVER, **F64), AveragePool2d(2)]
    layers += [SpikingConv2d(3, 2, 2, solver=SOLVER, **F64)]
    for layer in layers[::2]:
        layer.reset_parameters(2.0, 4.0)
    return nn.Sequential(nn.Module() if pool else nn.Identity(), *layers)


class Twice(nn.Module):
    """One layer that is called twice, in a module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = random_network([6, 6], LIF(), SOLVER)[0]

    def forward(self, spikes: Spikes) -> Spikes:
        return self.layer(self.layer(spikes))


NETWORKS = {
    "linear": lambda: random_network([6, 5, 4], LIF(), SOLVER),
    "slow synapses": lambda: random_network([6, 5, 4], LIF(6.0, 10.0), SOLVER),
    "max": lambda: random_network([6, 5, 4], LIF(), SOLVER, "max"),
    "mean": lambda: random_network([6, 5, 4], LIF(), SOLVER, "mean"),
    "three": lambda: random_network([6, 5, 5, 4], LIF(20.0, 10.0), SOLVER, "max"),
    "only a readout": lambda: random_network([6, 4], LIF(), SOLVER, "max"),
    "twice": Twice,
    "convolutions": convolutions,
    "learnable": lambda: random_layer(6, 5, SOLVER, diverse(5)),
    "learnable, held": lambda: random_layer(6, 5, SOLVER, diverse(5, refractory=3.0)),
    "held for long": lambda: random_layer(6, 5, SOLVER, diverse(5, refractory=12.0)),
    "recurrent": lambda: recurrent(LIF(), 1.0),
    "recurrent, at once": lambda: recurrent(LIF(), 0.0),
    "recurrent, late": lambda: recurrent(LIF(), 15.0),
    "recurrent, held": lambda: recurrent(diverse(5, refractory=3.0), 2.0),
    "recurrent, held, at once": lambda: recurrent(diverse(5, refractory=3.0), 0.0),
    "recurrent, held, late": lambda: recurrent(diverse(5, refractory=3.0), 8.0),
    "both": lambda: nn.Sequential(recurrent(LIF(), 1.0), recurrent(diverse(3, refractory=2.0), 3.0, 5, 3)),
}
BORDERS = {
    "one": [],
    "few": [0.0, 5.0, 20.0, 30.0],
    "many": [float(x) for x in range(-4, 60)],  # at the times of the sample whose arrivals come together
    "late": [55.0, 58.0],
}


def loss_of(output: Spikes | torch.Tensor) -> torch.Tensor:
    return smooth(output) if isinstance(output, Spikes) else output.sin().sum()


def problem(kind: str, dtype=torch.float64) -> tuple[nn.Module, Spikes]:
    torch.manual_seed(1)
    network = NETWORKS[kind]().to(dtype)
    return network, recording(36, dtype).reshape(1, 6, 6) if kind == "convolutions" else recording(6, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_chunks_give_the_very_numbers_of_the_whole(kind, borders, dtype):
    network, spikes = problem(kind, dtype)
    whole = network(spikes)
    outputs = list(stream(network, cut(spikes, BORDERS[borders])))
    if isinstance(whole, Spikes):
        assert whole.count().max() > 1
        found = joined(outputs)
        assert found.equal(whole)
        assert torch.equal(found.slope, whole._trimmed().slope)
    else:
        assert torch.equal(outputs[-1], whole)


@pytest.mark.parametrize("borders", ["few", "many"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_full_gradients_are_those_of_the_whole(kind, borders):
    network, spikes = problem(kind)
    gradients = []
    for chunked in (False, True):
        time = spikes.time.clone().requires_grad_(True)
        train = Spikes._trusted(time, spikes.index, spikes.shape)
        output = network(train)
        if chunked:
            outputs = list(stream(network, cut(train, BORDERS[borders]), backward="full"))
            output = joined(outputs) if isinstance(output, Spikes) else outputs[-1]
        gradients.append(torch.autograd.grad(loss_of(output), [time, *network.parameters()]))
    for expected, found in zip(*gradients, strict=True):
        assert expected.norm() > 0
        assert (found - expected).norm() <= 1e-12 * expected.norm()  # sums in another order
