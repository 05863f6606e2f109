"""P3: the backward pass against central differences in float64, and what a checker must tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import EXACT, assert_exact, random_network
from torch.nn import functional as F

from eventprop import LIF, EventDriven, LeakyReadout, Spikes, SpikingLinear, check_gradients, first_spike_cross_entropy
from eventprop.core.neuron import decay


@pytest.mark.parametrize("loss", ["first_spike", "max", "mean"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_are_exact(neuron, depth, loss):
    """Random networks of 1-3 layers with several spikes per neuron: weights and input times."""
    torch.manual_seed(30 + depth)
    sizes = [4, 5, 4, 3][-depth - 1 :]
    network = random_network(sizes, neuron, EventDriven(t_end=40.0), None if loss == "first_spike" else loss)
    target = torch.randint(0, 3, (2,))
    spikes_per_neuron = []

    def fn(times, *_):
        spikes = Spikes.from_times(times)
        for layer in network:
            spikes = layer(spikes)
            if isinstance(spikes, Spikes):
                spikes_per_neuron.append(float(spikes.count().double().mean()))
        return first_spike_cross_entropy(spikes, target) if loss == "first_spike" else F.cross_entropy(spikes, target)

    assert_exact(fn, [torch.rand(2, sizes[0], 2, dtype=torch.float64) * 20, *network.parameters()])
    if spikes_per_neuron:
        assert max(spikes_per_neuron) > 1


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradients_of_simultaneous_arrivals_are_exact(backend):
    """The binary latency code: many arrivals at one time."""
    torch.manual_seed(1)
    network = random_network([5, 3, 2], LIF(), EventDriven(40.0, backend=backend), "max")
    times = torch.where(torch.rand(3, 5) > 0.5, 10.0, 20.0).double()
    target = torch.tensor([0, 1, 0])
    assert_exact(lambda *_: F.cross_entropy(network(Spikes.from_times(times)), target), [*network.parameters()])


def test_maximum_voltage_where_an_arrival_ends_the_rise():
    """An inhibitory arrival cuts V off while it rises: the maximum moves with that arrival."""
    readout = LeakyReadout(2, 1, solver=EventDriven(40.0), dtype=torch.float64)
    readout.weight.data.copy_(torch.tensor([[3.0, -9.0]]))
    times = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
    report = assert_exact(lambda t, _: readout(Spikes.from_times(t)).sum(), [times, readout.weight])
    _, s, phi = decay(torch.tensor(4.0, dtype=torch.float64), 20.0, 5.0)
    assert float(report.analytic[0][0, 1]) == pytest.approx(3.0 * float(s - phi) / 20.0)  # 3 dphi/dt after 4 ms


def test_maximum_voltage_at_the_end_of_the_window():
    readout = LeakyReadout(1, 1, solver=EventDriven(4.0), dtype=torch.float64)
    readout.weight.data.fill_(3.0)
    times = torch.tensor([[1.0]], dtype=torch.float64)
    assert_exact(lambda t, _: readout(Spikes.from_times(t)).sum(), [times, readout.weight])


def test_any_torch_function_of_spike_times_is_a_loss(neuron):
    torch.manual_seed(3)
    network = random_network([5, 6], neuron, EventDriven(40.0))
    times = torch.rand(2, 5, 2, dtype=torch.float64) * 20

    def fn(times, *_):
        out = network(Spikes.from_times(times))
        return torch.where(torch.isfinite(out.time), torch.sin(out.time / 7) * (1 + out.index), 0.0).sum()

    assert_exact(fn, [times, *network.parameters()])


def single(weight: float) -> SpikingLinear:
    layer = SpikingLinear(1, 1, solver=EventDriven(40.0), dtype=torch.float64)
    layer.weight.data.fill_(weight)
    return layer


def test_a_spike_that_appears_is_reported_apart():
    layer = single(LIF().minimum_weight - 1e-7)
    arrivals = Spikes.from_times(torch.tensor([[1.0]], dtype=torch.float64))

    def fn(weight):
        time = layer.solver.spikes(arrivals, weight, layer.neuron).time
        return torch.where(torch.isfinite(time), time, 0.0).sum() + 0.0 * weight.sum()

    report = check_gradients(fn, [layer.weight.detach().clone()])
    assert report.count_changed[0].all()
    assert not report.order_changed[0].any()
    assert not report.compared[0].any()
    assert "1 where a spike appears or disappears" in str(report)


def test_a_spike_that_overtakes_an_arrival_is_reported_apart():
    first = EventDriven(40.0).spikes(
        Spikes.from_times(torch.tensor([[1.0]], dtype=torch.float64)),
        torch.full((1, 1), 20.0, dtype=torch.float64),
        LIF(),
    )
    at = float(first.time[0, 0])
    times = torch.tensor([[1.0, at]], dtype=torch.float64)  # the second arrival comes as the first spike does
    weight = torch.tensor([[20.0, 1.0]], dtype=torch.float64)

    def fn(times):
        return EventDriven(40.0).spikes(Spikes.from_times(times), weight, LIF()).time[0, 0]

    report = check_gradients(fn, [times])
    assert report.order_changed[0].tolist() == [[True, True]]
    assert not report.count_changed[0].any()


def test_a_wrong_gradient_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.square().sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.tensor([2.0, 4.0, 6.0 * (1 + 1e-5)], dtype=torch.float64)

    report = check_gradients(Wrong.apply, [torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)])
    assert report.relative_error == pytest.approx(6e-5 / math.sqrt(56), rel=1e-3)


def test_check_gradients_restores_its_inputs_and_skips_padding():
    time = torch.tensor([[1.0, math.inf]], dtype=torch.float64)
    before = time.clone()
    layer = single(20.0)
    report = check_gradients(lambda t: layer(Spikes(t, torch.tensor([[0, -1]]), 1)).time[0, 0], time)
    assert torch.equal(time, before)
    assert time.requires_grad is False
    assert report.skipped[0].tolist() == [[False, True]]
    assert report.relative_error <= EXACT


def test_check_gradients_names_bad_arguments():
    x = torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        TypeError, match=r"inputs\[0\] must be a float64 tensor, got torch.float32; convert with .double()"
    ):
        check_gradients(torch.sum, [x.float()])
    with pytest.raises(ValueError, match="fn must return a tensor with one element"):
        check_gradients(lambda x: x, [x])
    with pytest.raises(ValueError, match="inputs must hold at least one tensor"):
        check_gradients(torch.sum, [])
    with pytest.raises(ValueError, match="eps must be positive"):
        check_gradients(torch.sum, [x], eps=0.0)
    with pytest.raises(ValueError, match=r"inputs\[0\] must be a leaf"):
        check_gradients(torch.sum, [x.requires_grad_(True) * 2])


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_grazing_policies_change_the_gradient_of_grazing_spikes_only(backend):
    """P9: one neuron crosses steeply, the other grazes; dt/dw = -phi/slope (eq. 9 with p = q = 0)."""
    arrivals = Spikes.from_times(torch.tensor([[0.0]], dtype=torch.float64))
    weight = torch.tensor([[30.0], [LIF().minimum_weight * (1 + 1e-9)]], dtype=torch.float64, requires_grad=True)
    gradients, times = {}, {}
    for policy in ("raw", "clamp", "saturate", "drop"):
        out = EventDriven(40.0, grazing=policy, min_slope=1e-2, backend=backend).spikes(arrivals, weight, LIF())
        first = out.first_spike_time()[0]
        times[policy] = first.detach()
        gradients[policy] = torch.autograd.grad(first.sum(), weight)[0].squeeze(1)
        slope = out.slope[0, out.index[0] == 1][0]
    assert float(slope) < 1e-2
    assert torch.equal(times["raw"], times["clamp"])
    assert torch.equal(times["raw"], times["drop"])
    assert gradients["raw"][0] == gradients["clamp"][0] == gradients["drop"][0]
    assert float(gradients["clamp"][1] / gradients["raw"][1]) == pytest.approx(float(slope) / 1e-2, rel=1e-9)
    assert gradients["drop"][1] == 0
    assert torch.equal(times["raw"], times["saturate"])
    steep, saturated = gradients["saturate"] / gradients["raw"]
    assert float(saturated) == pytest.approx(float(slope) / math.hypot(float(slope), 1e-2), rel=1e-9)
    assert float(steep) == pytest.approx(
        1.0, abs=0.5 * (1e-2 / 0.1) ** 2
    )  # slopes above 0.1: the square root's first term
