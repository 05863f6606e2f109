"""Neurons behind any linear map, on a grid."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_exact, random_spikes, smooth
from torch import nn

from eventprop import EventDriven, SpikingLayer, SpikingLinear, TimeStepped


class LowRankMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return x @ self.right.t() @ self.left.t()


class Squared(nn.Module):
    def forward(self, x):
        return x * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_module_gives_what_spiking_linear_gives(backend, dtype):
    """Up to rounding: one multiplies dense effects, the other adds up row by row."""
    torch.manual_seed(10)
    solver = TimeStepped(40.0, 1.0, backend=backend)
    linear = nn.Linear(6, 4, bias=False, dtype=dtype)
    layer = SpikingLinear(6, 4, solver=solver, dtype=dtype)
    layer.reset_parameters(1.0, 3.0)
    linear.weight.data.copy_(layer.weight.data)
    spikes = random_spikes(3, 6, dtype=dtype)
    found, expected = SpikingLayer(linear, solver=solver)(spikes), layer(spikes)
    assert torch.equal(found.index, expected.index)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # times of gentle slope amplify rounding
    torch.testing.assert_close(found.time, expected.time, rtol=0, atol=tolerance)
    smooth(found).backward()
    smooth(expected).backward()
    size = layer.weight.grad.norm()
    torch.testing.assert_close(linear.weight.grad / size, layer.weight.grad / size, rtol=0, atol=tolerance)


def test_a_map_of_the_user_is_a_synapse():
    torch.manual_seed(11)
    layer = SpikingLayer(LowRankMap(), solver=TimeStepped(40.0, 1.0))
    layer.reset_parameters(1.0, 1.5)
    layer.double()
    spikes = random_spikes(2, 6)
    assert 4 < layer(spikes).count().sum() < 200
    assert_exact(lambda *_: smooth(layer(spikes)), [*layer.parameters()])


@pytest.mark.parametrize(
    ("synapses", "message"),
    [
        (nn.Linear(6, 4), r"synapses must have no bias, the module \(Linear\) has one; build it with bias=False"),
        (nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU()), r"synapses must be linear, 1 \(ReLU\) is not"),
        (nn.MaxPool1d(2), r"synapses must be linear, the module \(MaxPool1d\) is not"),
        (nn.BatchNorm1d(6), "must have no bias"),
    ],
)
def test_maps_that_are_not_linear_are_refused(synapses, message):
    with pytest.raises(ValueError, match=message):
        SpikingLayer(synapses, solver=TimeStepped(40.0, 1.0))


def test_a_nonlinear_map_of_the_user_is_refused_when_it_is_used():
    layer = SpikingLayer(Squared(), solver=TimeStepped(40.0, 1.0))
    with pytest.raises(ValueError, match="synapses must be linear, without bias: f"):
        layer(random_spikes(2, 6))


def test_a_layer_behind_a_module_needs_a_grid():
    with pytest.raises(TypeError, match="solver must be TimeStepped.* for SpikingLayer, got EventDriven"):
        SpikingLayer(nn.Linear(6, 4, bias=False), solver=EventDriven(40.0))
