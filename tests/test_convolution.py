"""Convolution and pooling of spike trains."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import assert_exact, random_network, random_spikes
from torch.nn import functional as F

from eventprop import (  # fmt: skip
    LIF,
    AveragePool2d,
    EarliestSpikePool2d,
    EventDriven,
    GridSpikes,
    LeakyReadout,
    Spikes,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    TimeStepped,
    latency_encode,
)

ROUNDING = 1e-12  # the same events in another order
GEOMETRIES = {  # channels, image, kernel, stride, padding
    "plain": (1, (5, 5), 3, 1, 0),
    "strided": (2, (6, 7), 3, 2, 0),
    "padded": (2, (4, 5), (3, 2), (2, 1), (1, 1)),
    "gaps": (1, (7, 7), 2, 3, 0),  # inputs between the fields reach nobody
    "one position": (3, (2, 2), 2, 2, 0),
}
SOLVERS = [EventDriven(40.0), EventDriven(40.0, backend="torch"), TimeStepped(40.0, 0.5)]


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def geometry(request):
    return request.param


def image_spikes(batch: int, channels: int, image: tuple[int, int], per_neuron: int = 2) -> Spikes:
    return random_spikes(batch, channels * math.prod(image), per_neuron).reshape(channels, *image)


def convolution(geometry, solver, out_channels: int = 3) -> SpikingConv2d:
    """Of neurons that spike a few times."""
    channels, _, kernel, stride, padding = geometry
    layer = SpikingConv2d(channels, out_channels, kernel, stride, padding, solver=solver, dtype=torch.float64)
    layer.reset_parameters(mean=3.0, std=4.0)
    return layer


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_convolution_is_a_linear_layer_with_shared_weights(geometry, solver):
    torch.manual_seed(0)
    channels, image, _, stride, padding = geometry
    layer, spikes = convolution(geometry, solver), image_spikes(3, channels, image)
    inputs = spikes.num_neurons
    one_each = torch.eye(inputs, dtype=torch.float64).reshape(inputs, channels, *image)
    shared = F.conv2d(one_each, layer.weight, None, stride, padding)
    dense = SpikingLinear(inputs, shared[0].numel(), solver=solver, dtype=torch.float64)
    dense.weight.data.copy_(shared.flatten(1).t())
    output, expected = layer(spikes), dense(spikes)
    assert output.shape == shared.shape[1:]
    assert torch.equal(output.count(), expected.count())
    assert output.count().max() > 1
    torch.testing.assert_close(output.to_times(), expected.to_times(), rtol=0, atol=ROUNDING)
    assert (output.time[:, 1:] >= output.time[:, :-1]).all()


def test_the_backends_agree(geometry):
    torch.manual_seed(1)
    channels, image, *_ = geometry
    spikes, results = image_spikes(4, channels, image), []
    for backend in ("numba", "torch"):
        torch.manual_seed(2)
        layer = convolution(geometry, EventDriven(40.0, backend=backend))
        time = spikes.time.clone().requires_grad_(True)
        output = layer(Spikes._trusted(time, spikes.index, spikes.shape))
        real = output.index >= 0
        results.append(
            (output.time, output.index, *torch.autograd.grad(output.time[real].square().sum(), (time, layer.weight)))
        )
    for numba, reference in zip(*results, strict=True):
        torch.testing.assert_close(numba, reference, rtol=1e-9, atol=ROUNDING)  # as in test_event_driven


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[2]], ids=repr)
def test_gradients_of_a_network_that_mixes_everything(solver):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        convolution((1, None, 3, 1, 0), solver),
        EarliestSpikePool2d(2),
        convolution((3, None, 2, 1, 1), solver, 2),
        AveragePool2d((1, 2)),
        random_network([6, 3], LIF(), solver)[0],
        LeakyReadout(3, 2, solver=solver, dtype=torch.float64),
    )
    spikes = image_spikes(2, 1, (6, 6), 1)
    time = spikes.time.clone()

    def loss(*_):
        return network(Spikes._trusted(time, spikes.index, spikes.shape)).square().sum()

    assert_exact(loss, [time, *network.parameters()])


def test_the_earliest_spike_wins_its_window():
    spikes = Spikes.from_times(torch.tensor([[[3.0, 9.0], [1.0, 2.0], [4.0, math.inf], [1.5, 1.7]]])).reshape(1, 2, 2)
    output = EarliestSpikePool2d(2)(spikes)
    assert output.shape == (1, 1, 1)
    assert output.to_times().flatten().tolist() == [1.0, 2.0]  # of the neuron that fires at 1.0, all spikes


def test_average_pooling_is_that_of_torch():
    """On a grid, where torch's module is a synapse, with rows that fill no window."""
    torch.manual_seed(0)
    solver, spikes = TimeStepped(40.0, 1.0), image_spikes(3, 2, (5, 4))
    convolved = torch.nn.Conv2d(2, 3, 2, bias=False, dtype=torch.float64)
    torch.nn.init.normal_(convolved.weight, 8.0, 8.0)
    pooled = torch.nn.Sequential(torch.nn.Unflatten(1, (2, 5, 4)), torch.nn.AvgPool2d(2), convolved)
    expected = SpikingLayer(pooled, solver=solver)(spikes)
    output = SpikingLayer(convolved, solver=solver)(GridSpikes.from_spikes(AveragePool2d(2)(spikes), 1.0, 40.0))
    assert torch.equal(output.count(), expected.count())
    assert output.count().sum() > 0
    torch.testing.assert_close(output.time, expected.time, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pool", [EarliestSpikePool2d(2), AveragePool2d(2)], ids=repr)
def test_pooling_without_spikes(pool):
    nobody = Spikes.from_times(torch.full((2, 16), math.inf)).reshape(4, 4)
    assert pool(nobody).count().tolist() == [[0] * 4] * 2
    assert pool(nobody.select(torch.arange(0))).batch_size == 0


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_convolution_without_spikes(solver):
    layer = SpikingConv2d(1, 2, 3, solver=solver)
    nobody = Spikes.from_times(torch.full((2, 16), math.inf)).reshape(4, 4)
    output = layer(nobody)
    assert output.count().shape == (2, 8)
    assert output.count().sum() == 0
    assert layer(nobody.select(torch.arange(0))).batch_size == 0


def test_encoded_images_have_a_shape():
    assert latency_encode(torch.rand(2, 3, 4, 5)).shape == (3, 4, 5)
    assert latency_encode(torch.rand(2, 20)).shape == (20,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpikingConv2d(0, 1, 3, solver=EventDriven(40.0)), "in_channels must be >= 1, got 0"),
        (lambda: SpikingConv2d(1, 1, 0, solver=EventDriven(40.0)), "kernel_size must be >= 1, got 0"),
        (lambda: SpikingConv2d(1, 1, (3,), solver=EventDriven(40.0)), "kernel_size must be a whole number or two"),
        (lambda: SpikingConv2d(1, 1, 3, -1, solver=EventDriven(40.0)), "stride must be >= 1, got -1"),
        (lambda: SpikingConv2d(1, 1, 3, solver=EventDriven(40.0), neuron=3), "neuron of a SpikingConv2d must be LIF"),
        (lambda: SpikingConv2d(1, 1, 3, solver="event_driven"), "solver must be an EventDriven"),
        (
            lambda: SpikingConv2d(1, 1, 3, solver=EventDriven(40.0))(random_spikes(1, 16).to(torch.float32)),
            "must have the shape (channels, height, width) or (height, width), got (16,); encode images",
        ),
        (
            lambda: SpikingConv2d(2, 1, 3, solver=EventDriven(40.0))(latency_encode(torch.rand(1, 4, 4))),
            "the input has 1 channels but weight [1, 2, 3, 3] takes 2",
        ),
        (
            lambda: SpikingConv2d(1, 1, 5, solver=EventDriven(40.0))(latency_encode(torch.rand(1, 4, 4))),
            "kernel_size=(5, 5) exceeds the image of 4 x 4",
        ),
        (lambda: random_spikes(1, 16).reshape(3, 5), "shape must have num_neurons=16 entries in all, got (3, 5)"),
        (lambda: EarliestSpikePool2d(5)(latency_encode(torch.rand(1, 4, 4))), "kernel_size=(5, 5) exceeds"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()
