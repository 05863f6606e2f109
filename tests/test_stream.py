"""Recordings in chunks of time: the oracle is the same network, given the whole recording at once."""

from __future__ import annotations

import itertools
import math
import re
import resource
import sys
from pathlib import Path

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


def convolutions() -> nn.Sequential:
    layers = [SpikingConv2d(1, 3, 3, padding=1, solver=SOLVER, **F64), SpikingConv2d(3, 2, 2, solver=SOLVER, **F64)]
    for layer in layers:
        layer.reset_parameters(2.0, 4.0)
    return nn.Sequential(layers[0], AveragePool2d(2), layers[1])


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
    elif kind == "mean":  # areas of several arrivals at once, or of one, are rounded by other instructions
        rounding = 1e-14 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(outputs[-1], whole, rtol=rounding, atol=rounding * float(whole.detach().abs().max()))
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


def difference(
    kind: str, borders: list[float], chunk: int, parameter: int, direction: torch.Tensor, eps: float
) -> float:
    """The derivative of the loss of one chunk by a parameter that changes as that chunk begins, in one direction."""
    values = []
    for sign in (1.0, -1.0):
        network, spikes = problem(kind)
        outputs = stream(network, cut(spikes, borders))
        for _ in range(chunk):
            next(outputs)
        with torch.no_grad():
            list(network.parameters())[parameter].add_(direction, alpha=sign * eps)
        values.append(loss_of(next(outputs)).item())
    return (values[0] - values[1]) / (2.0 * eps)


@pytest.mark.parametrize(
    "kind", ["linear", "max", "mean", "convolutions", "learnable, held", "recurrent, held, late", "both"]
)
def test_truncated_gradients_are_those_of_parameters_that_change_as_a_chunk_begins(kind):
    """What is carried over is then what it was; differences know nothing of how gradients are cut."""
    network, spikes = problem(kind)
    borders, chunk = [5.0, 18.0, 31.0], 2
    outputs = list(stream(network, cut(spikes, borders), backward="truncated"))
    gradients = torch.autograd.grad(loss_of(outputs[chunk]), list(network.parameters()))
    assert max(gradient.norm() for gradient in gradients) > 0
    for parameter, gradient in enumerate(gradients):
        direction = torch.randn_like(gradient)
        direction /= direction.norm()
        expected = difference(kind, borders, chunk, parameter, direction, 1e-6)
        found = (gradient * direction).sum().item()
        # differences of times of 1e-14 over 2 eps; eps^2 times third derivatives
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7 * float(gradient.norm()))


def test_truncated_gradients_reach_no_earlier_chunk():
    network, spikes = problem("linear")
    times = [chunk.time.clone().requires_grad_(True) for chunk in cut(spikes, [10.0, 30.0])]
    chunks = [Spikes(time, chunk.index, 6) for time, chunk in zip(times, cut(spikes, [10.0, 30.0]), strict=True)]
    outputs = []
    for output in stream(network, chunks):
        loss_of(output).backward()  # frees the graph of the chunk
        outputs.append(output)
        with torch.no_grad():
            network[0].weight.mul_(0.9)
    assert all(time.grad.isfinite().all() for time in times if time.grad is not None)
    again = list(stream(network, chunks))
    (first,) = torch.autograd.grad(loss_of(again[1]), times[0], allow_unused=True)
    assert first is None
    full = list(stream(network, chunks, backward="full"))
    (first,) = torch.autograd.grad(loss_of(full[1]), times[0])
    assert first.norm() > 0


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_recording():
    """A chunk has 20,000 spikes, 1 MB as it comes and more in the graph; all 150 would be 150 MB."""
    torch.manual_seed(0)
    solver = EventDriven(t_end=1e6)
    network = nn.Sequential(recurrent(LIF(), 1.0, 20, 8), LeakyReadout(8, 3, solver=solver, **F64))
    network[0].solver = solver
    network[0].weight.data.mul_(0.05)

    def chunks():
        for k in range(150):
            spikes = random_spikes(1, 20, 1000, 1000.0)
            yield spikes.reordered(spikes.time + 1000.0 * k, spikes.index)

    used = []
    for output in stream(network, chunks()):
        output.sum().backward()
        used.append(resident())
    assert max(used[100:]) - max(used[20:50]) < 20e6


def test_a_convolution_holds_back_what_may_not_be_in_order_yet():
    """Of two positions, the left one will fire after its only arrival, the right one fires at once and again and again."""
    layer = SpikingConv2d(1, 1, 1, solver=EventDriven(100.0), **F64)
    layer.weight.data.fill_(1.2 * LIF().minimum_weight)
    time = torch.tensor([[0.0, 1.0, 2.0, 50.0, 60.0, 90.0]], dtype=torch.float64)
    spikes = Spikes(time, torch.tensor([[0, 1, 1, 1, 0, 1]]), 2, shape=(1, 1, 2))
    outputs = list(stream(layer, cut(spikes, [55.0, 80.0])))
    whole = layer(spikes)
    assert int(outputs[0].count().sum()) == 0
    assert int(outputs[1].count().sum()) > 1
    assert joined(outputs).equal(whole)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Sequential(Delay(6), SpikingLinear(6, 2, solver=SOLVER)), UnsupportedError, "a Delay in a stream"),
        (lambda: nn.Sequential(BiasSpike(1.0)), UnsupportedError, "network must not have a BiasSpike in a stream"),
        (lambda: nn.Sequential(EarliestSpikePool2d(2)), UnsupportedError, "a EarliestSpikePool2d in a stream"),
        (lambda: SpikingLinear(6, 2, solver=TimeStepped(60.0, 1.0)), UnsupportedError, "solver must be EventDriven in a str"),
        (lambda: SpikingLinear(6, 2, solver=EventDriven(60.0, backend="torch")), UnsupportedError, "the backend 'numba'"),
        (lambda: DelayedSpikingLinear(6, 2, solver=SOLVER), UnsupportedError, "got `DelayedSpikingLinear`"),
        (lambda: LeakyReadout(6, 2, solver=SOLVER, learn_tau=True), UnsupportedError, "got `LeakyReadout`, reduce"),
    ],
)  # fmt: skip
def test_layers_that_need_the_whole_recording_are_refused_by_name(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        stream(build(), [])


def test_bad_arguments_are_named():
    network, spikes = problem("linear")
    with pytest.raises(ValueError, match="backward must be one of 'truncated', 'full', got 'all'"):
        stream(network, [spikes], backward="all")
    with pytest.raises(ValueError, match=r"chunks must not go back in time.*: sample 0 has a spike at -4"):
        list(stream(network, [spikes, spikes]))
    with pytest.raises(ValueError, match="chunks must be of the same samples, neurons and dtype"):
        list(stream(network, [spikes[:1], spikes]))
    with pytest.raises(TypeError, match="the input must be Spikes"):
        list(stream(network, [spikes.time]))
    assert list(stream(network, [])) == []


def test_networks_that_change_their_way_are_refused():
    network, spikes = problem("linear")

    class Once(nn.Module):
        calls = 0

        def forward(self, spikes: Spikes) -> Spikes:
            self.calls += 1
            return network[0](spikes) if self.calls == 2 else network(spikes)

    with pytest.raises(
        ValueError, match="network must call the same layers in the same order for every chunk of a stream"
    ):
        list(stream(Once(), cut(spikes, [10.0])))


def test_a_layer_outside_of_the_stream_is_not_part_of_it():
    """Between two chunks the same layers may be used otherwise."""
    network, spikes = problem("linear")
    whole, outputs = network(spikes), []
    for output in stream(network, cut(spikes, [10.0, 20.0])):
        outputs.append(output)
        assert network(spikes).equal(whole)
    assert joined(outputs).equal(whole)
