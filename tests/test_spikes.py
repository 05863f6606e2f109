"""Spike trains: constructors, conversions, gradients and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_spikes

from eventprop import Spikes

INF = math.inf


def test_from_times_sorts_and_pads():
    spikes = Spikes.from_times(torch.tensor([[3.0, INF, 1.0], [INF, INF, 2.0]]))
    assert spikes.time.tolist() == [[1.0, 3.0], [2.0, INF]]
    assert spikes.index.tolist() == [[2, 0], [2, -1]]
    assert spikes.num_neurons == 3


def test_from_times_takes_several_spikes_per_neuron_in_any_order():
    times = torch.tensor([[[5.0, 1.0], [INF, 3.0]]])
    spikes = Spikes.from_times(times)
    assert spikes.time.tolist() == [[1.0, 3.0, 5.0]]
    assert spikes.index.tolist() == [[0, 1, 0]]
    assert spikes.to_times().tolist() == [[[1.0, 5.0], [3.0, INF]]]


def test_from_times_keeps_no_memory_for_silent_neurons():
    times = torch.full((2, 100), INF)
    times[:, 7] = 1.0
    time = Spikes.from_times(times).time
    assert time.shape == (2, 1)
    assert time.untyped_storage().nbytes() == time.nbytes


def test_to_times_inverts_from_times():
    torch.manual_seed(0)
    times = (torch.rand(4, 7, 3) * 20).sort(dim=2).values
    assert torch.equal(Spikes.from_times(times).to_times(), times)
    assert torch.equal(Spikes.from_times(times).to_times(2), times[..., :2])


def test_first_spike_time_and_count():
    spikes = Spikes.from_times(torch.tensor([[[5.0, 1.0], [INF, INF]], [[INF, 7.0], [2.0, 2.0]]]))
    assert spikes.first_spike_time().tolist() == [[1.0, INF], [7.0, 2.0]]
    assert spikes.count().tolist() == [[2, 0], [1, 2]]


def test_first_spike_time_passes_its_gradient_to_first_spikes_only():
    spikes = random_spikes(3, 5)
    spikes.time.requires_grad_(True)
    first = spikes.first_spike_time()
    weight = torch.rand_like(first)
    (first * weight).sum().backward()
    for b in range(3):
        for n in range(5):
            columns = (spikes.index[b] == n).nonzero().squeeze(1)
            assert spikes.time.grad[b, columns].tolist() == [weight[b, n], 0.0]


def test_silent_neurons_have_gradient_zero_and_never_nan():
    time = torch.tensor([[1.0, INF]], requires_grad=True)
    spikes = Spikes(time, torch.tensor([[0, -1]]), 2)
    first = spikes.first_spike_time()
    torch.where(torch.isfinite(first), first, 0.0).sum().backward()
    assert time.grad.tolist() == [[1.0, 0.0]]


def test_raster_round_trip():
    torch.manual_seed(0)
    raster = torch.randint(0, 3, (40, 3, 5)).float()
    for dt in (0.1, 0.3, 1.0):  # 0.1 and 0.3 have no exact floating point value
        spikes = Spikes.from_raster(raster, dt)
        assert int(spikes.count().sum()) == int(raster.sum())
        assert torch.equal(spikes.to_raster(dt, 40 * dt), raster)


def test_raster_bins():
    spikes = Spikes.from_times(torch.tensor([[0.0, 0.99, 1.0, 3.0]]))
    raster = spikes.to_raster(dt=1.0, t_end=3.0)
    assert raster.squeeze(1).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # the last bin includes t_end


def test_to_raster_loses_nothing_silently():
    spikes = Spikes.from_times(torch.tensor([[0.0, 5.0]]))
    with pytest.raises(ValueError, match=r"1 spikes lie outside \[0, t_end=4.0\]"):
        spikes.to_raster(1.0, 4.0)
    with pytest.raises(
        ValueError, match=r"t_end must be a whole number of steps dt=2.0: 4.0 or 6.0 would fit, got 5.0"
    ):
        spikes.to_raster(2.0, 5.0)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_from_raster_refuses_what_is_not_a_count(value):
    raster = torch.zeros(4, 2, 3)
    raster[1, 1, 1] = value
    with pytest.raises(ValueError, match="raster must hold whole numbers >= 0"):
        Spikes.from_raster(raster, 1.0)


def test_select_and_cat():
    torch.manual_seed(0)
    times = torch.rand(5, 6)
    times[2:] = INF
    spikes = Spikes.from_times(times)
    assert spikes.select(torch.tensor([3, 4])).time.shape == (2, 0)
    joined = Spikes.cat([spikes.select(torch.tensor([3])), spikes.select(torch.tensor([0, 1]))])
    assert torch.equal(joined.to_times(1).squeeze(2), times[[3, 0, 1]])
    with pytest.raises(ValueError, match="of one shape"):
        Spikes.cat([spikes, Spikes.from_times(torch.rand(1, 3))])


def test_to_and_detach():
    spikes = random_spikes(2, 3, dtype=torch.float32)
    spikes.time.requires_grad_(True)
    assert spikes.to(torch.float64).dtype == torch.float64
    assert spikes.to("meta").device.type == "meta"
    assert spikes.detach().time.requires_grad is False
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        spikes.to(torch.float16)


def test_empty():
    for shape in ((0, 3), (2, 0)):
        spikes = Spikes.from_times(torch.empty(shape))
        assert spikes.first_spike_time().shape == shape
        assert spikes.count().shape == shape
        assert spikes.to_times().shape == (*shape, 0)
        assert spikes.to_raster(1.0, 5.0).shape == (5, *shape)
    assert Spikes.from_raster(torch.zeros(4, 2, 3), 1.0).time.shape == (2, 0)


GOOD = {"time": torch.tensor([[1.0, INF]]), "index": torch.tensor([[0, -1]]), "num_neurons": 2}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"time": [[1.0]]}, TypeError, "time must be a torch.Tensor, got list"),
        ({"time": torch.tensor([[1, 2]])}, TypeError, "time must be float32 or float64, got torch.int64"),
        ({"time": GOOD["time"].half()}, TypeError, "time must be float32 or float64, got torch.float16"),
        ({"index": GOOD["index"].double()}, TypeError, "index must be int16, int32 or int64, got torch.float64"),
        ({"index": [[0]]}, TypeError, "index must be a torch.Tensor, got list"),
        ({"num_neurons": 2.0}, TypeError, "num_neurons must be an int"),
        ({"num_neurons": -1}, ValueError, "num_neurons must be >= 0, got -1"),
        ({"time": torch.tensor([1.0])}, ValueError, r"time must have shape \[B, K\], got \[1\]"),
        ({"index": torch.tensor([[0]])}, ValueError, r"index must have the shape of time \[1, 2\], got \[1, 1\]"),
        ({"index": torch.tensor([[2, -1]])}, ValueError, r"index must lie in \[0, num_neurons=2\).*from -1 to 2"),
        ({"index": torch.tensor([[-2, -1]])}, ValueError, "index must lie in"),
        ({"time": torch.tensor([[math.nan, INF]])}, ValueError, "time must be finite.*got NaN"),
        ({"time": torch.tensor([[-INF, INF]])}, ValueError, "time must be finite.*-inf"),
        (
            {"time": torch.tensor([[2.0, 1.0]]), "index": torch.tensor([[0, 1]])},
            ValueError,
            "ascend along each row, row 0",
        ),
        ({"index": torch.tensor([[0, 1]])}, ValueError, "must agree on padding"),
        ({"index": torch.tensor([[-1, -1]])}, ValueError, "must agree on padding"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    Spikes(**GOOD)
    with pytest.raises(error, match=message):
        Spikes(**(GOOD | change))


def test_bad_times_are_named():
    with pytest.raises(ValueError, match=r"times must have shape \[B, N\] or \[B, N, R\], got \[3\]"):
        Spikes.from_times(torch.ones(3))
    with pytest.raises(ValueError, match="times must be finite, or \\+inf"):
        Spikes.from_times(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        random_spikes(1, 2).to_times(0)


def test_shapes_are_checked():
    spikes = Spikes.from_times(torch.rand(2, 36))
    assert spikes.reshape(6, 6).shape == (6, 6)
    assert Spikes(spikes.time, spikes.index, 36, shape=[6, 6]).shape == (6, 6)
    with pytest.raises(ValueError, match="shape must be >= 0, got -6"):
        spikes.reshape(-6, -6)
    with pytest.raises(ValueError, match="parts must be of one shape, height and grid"):
        Spikes.cat([spikes, spikes.reshape(6, 6)])
