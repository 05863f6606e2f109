"""The two backends of the solver on a time grid agree, whatever the number of threads."""

from __future__ import annotations

import pytest
import torch
from conftest import random_spikes, smooth

from eventprop import SpikingLinear, TimeStepped
from eventprop.solvers.time_stepped import kernels, reference
from eventprop.solvers.time_stepped.grid import Grid


@pytest.mark.parametrize("scheme", ["exponential", "euler"])
def test_backends_agree(neuron, scheme):
    """Up to rounding: 1e-12 of values of order 1 and of gradients divided by their norm."""
    torch.manual_seed(1)
    grid = Grid.of(neuron, 40.0, 0.5, scheme)
    arrivals = random_spikes(3, 6)
    steps, effect = kernels.effects(arrivals.time, arrivals.index, 6, grid)
    expected_steps, expected_effect = reference.effects(arrivals.time, arrivals.index, 6, grid)
    assert torch.equal(steps, expected_steps)
    torch.testing.assert_close(effect, expected_effect, rtol=0, atol=1e-12)  # the promise; seen: 1e-16
    weight = 3.0 * neuron.minimum_weight * torch.randn(5, 6, dtype=torch.float64)
    received = arrivals.time, arrivals.index, weight.t()
    (steps, drive), (expected_steps, expected_drive) = (x.drive_of(*received, grid) for x in (kernels, reference))
    assert torch.equal(steps, expected_steps)
    torch.testing.assert_close(drive, expected_drive, rtol=0, atol=1e-12)
    tape, expected_tape = kernels.forward(drive, steps, grid), reference.forward(drive, steps, grid)
    for values, expected in zip(tape, expected_tape, strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert tape.time.isfinite().sum() > 50
    grad = torch.randn_like(tape.time)
    grad_drive = kernels.adjoint(steps, tape, grad, 5, grid)
    expected = reference.adjoint(steps, tape, grad, 5, grid)
    torch.testing.assert_close(grad_drive / expected.norm(), expected / expected.norm(), rtol=0, atol=1e-12)
    expected = reference.drive_adjoint(*received, steps, grad_drive, grid, True, True)
    for backend in (kernels, reference):
        for needs in ((True, True), (True, False), (False, True)):
            shares = backend.drive_adjoint(*received, steps, grad_drive, grid, *needs)
            for found, needed, share in zip(shares, needs, expected, strict=True):
                if needed:
                    torch.testing.assert_close(found / share.norm(), share / share.norm(), rtol=0, atol=1e-12)
                else:
                    assert not found.numel()
    grad_effect = torch.randn_like(effect)
    torch.testing.assert_close(
        kernels.effects_adjoint(arrivals.time, arrivals.index, steps, grad_effect, grid),
        reference.effects_adjoint(arrivals.time, arrivals.index, steps, grad_effect, grid),
        rtol=0, atol=1e-12,
    )  # fmt: skip


def test_results_do_not_depend_on_the_number_of_threads():
    """P7, bit for bit, gradients included."""
    torch.manual_seed(2)
    layer, arrivals = SpikingLinear(40, 30, solver=TimeStepped(40.0, 1.0)), random_spikes(64, 40, dtype=torch.float32)
    results, saved = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train = layer(arrivals)
            results.append((train.time, *torch.autograd.grad(smooth(train), layer.weight)))
    finally:
        torch.set_num_threads(saved)
    assert all(map(torch.equal, *results))
