"""Encoders against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from eventprop import binary_latency_encode, latency_encode, sequence_encode


def test_latency_code_of_grey_values():
    images = torch.tensor([[0, 1, 2, 128, 255]], dtype=torch.uint8)
    first = latency_encode(images).first_spike_time()
    expected = [math.inf, math.inf, (1 - 2 / 255) * 20, (1 - 128 / 255) * 20, 0.0]  # p > 1 spikes, as in the paper
    assert first[0].tolist() == pytest.approx(expected, abs=1e-5)  # float32 at 20 ms
    floats = latency_encode(images.double() / 255, t_min=5.0, t_max=15.0, threshold=0.5).first_spike_time()
    assert floats[0].tolist() == pytest.approx([math.inf] * 3 + [5 + (1 - 128 / 255) * 10, 5.0], abs=1e-13)


def test_every_pixel_spikes_once_in_the_binary_code():
    images = torch.rand(3, 1, 4, 4)
    spikes = binary_latency_encode(images)
    assert spikes.count().tolist() == [[1] * 16] * 3
    assert torch.equal(spikes.first_spike_time(), torch.where(images.flatten(1) > 0.5, 10.0, 20.0))


def test_latency_code_is_differentiable_in_the_images():
    images = torch.rand(2, 6, requires_grad=True)
    latency_encode(images).first_spike_time().sum().backward()
    assert torch.equal(images.grad, torch.full((2, 6), -20.0))


def test_rows_of_a_sequence_spike_one_after_the_other():
    rows = torch.tensor([[[1.0, 0.5], [0.0, 0.25]]], dtype=torch.float64, requires_grad=True)
    spikes = sequence_encode(rows, t_width=10.0, t_step=100.0)
    assert spikes.to_times(2).tolist() == [[[0.0, 110.0], [5.0, 107.5]]]  # [neuron][row]
    spikes.to_times(2).sum().backward()
    assert torch.equal(rows.grad, torch.full_like(rows, -10.0))
    with pytest.raises(ValueError, match=r"rows must have shape \[B, rows, N\], got \[1, 2\]"):
        sequence_encode(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="t_step must be at least t_width=10.0, got 5.0"):
        sequence_encode(rows, t_step=5.0)


@pytest.mark.parametrize("encode", [latency_encode, binary_latency_encode])
def test_bad_images_are_named(encode):
    with pytest.raises(TypeError, match="images must be a torch.Tensor, got list"):
        encode([[0.5]])
    with pytest.raises(TypeError, match="images must be float32, float64 or uint8, got torch.int64"):
        encode(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must have shape \[B, ...\], got \[3\]"):
        encode(torch.ones(3))
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"images must lie in \[0, 1\] without NaN"):
            encode(torch.tensor([[0.5, bad]]))
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), got 1"):
        encode(torch.ones(1, 1), threshold=1.0)
    assert encode(torch.zeros(0, 5)).num_neurons == 5


def test_bad_times_are_named():
    with pytest.raises(ValueError, match="t_min must be finite and less than t_max, got t_min=20.0 and t_max=20.0"):
        latency_encode(torch.ones(1, 1), t_min=20.0)
    with pytest.raises(ValueError, match="t_on must be finite and less than t_off, got t_on=nan"):
        binary_latency_encode(torch.ones(1, 1), t_on=math.nan)
