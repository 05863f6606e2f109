"""The window is [0, t_end]: what arrives before 0 acts, and what is measured is measured from 0 on."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import ALL, assert_exact, diverse, smooth

from eventprop import (
    LIF,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    silent_margin,
    smooth_count,
)
from eventprop.core.neuron import decay

T_END = 40.0
READOUTS = {
    "max": {"reduce": "max"},
    "mean": {"reduce": "mean"},
    "weighted": {"reduce": "weighted", "tau_weight": 15.0},
    "samples": {"reduce": "samples", "times": [0.0, 0.5, 7.0, T_END]},
}


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def readout(weight: torch.Tensor, backend: str, neuron: LIF | None = None, **options) -> LeakyReadout:
    solver = EventDriven(T_END, backend=backend)
    module = LeakyReadout(weight.shape[1], len(weight), neuron=neuron, solver=solver, dtype=torch.float64, **options)
    module.weight.data.copy_(weight)
    return module


@pytest.mark.parametrize("learn_tau", [False, True])
def test_the_mean_is_over_the_window(backend, learn_tau):
    arrivals, weight = Spikes.from_times(double([[-7.0, 3.0]])), double([[1.0, 2.0]])
    mean = readout(weight, backend, reduce="mean", learn_tau=learn_tau)(arrivals).item()
    assert mean == pytest.approx(0.288920276881243, rel=1e-14)  # the integral of the sum of PSPs by quadrature


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("name", READOUTS)
def test_readouts_of_arrivals_before_the_window(neuron, backend, name, learn_tau):
    """Against sums over times: 40,000 of them, between which V moves by up to 1e-3 of its slope."""
    torch.manual_seed(0)
    times, weight = torch.rand(3, 5, dtype=torch.float64) * 50 - 25, torch.randn(4, 5, dtype=torch.float64)
    found = readout(weight, backend, neuron, learn_tau=learn_tau, **READOUTS[name])(Spikes.from_times(times))
    at = (torch.arange(40_000, dtype=torch.float64) + 0.5) * (T_END / 40_000)
    if name == "samples":
        at = double(READOUTS[name]["times"])
    _, _, phi = decay((at[:, None, None] - times).clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
    v = phi @ weight.t()
    expected = {
        "max": lambda: v.amax(0).clamp(min=0.0),
        "mean": lambda: v.mean(0),
        "weighted": lambda: torch.einsum("t,tbn->bn", torch.softmax(-at / 15.0, 0), v),
        "samples": lambda: v.transpose(0, 1),
    }[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_maximum_may_be_the_begin_of_the_window(backend):
    """V falls at 0: the maximum is V(0), and its gradient that of an observation at a fixed time."""
    times = double([[-15.0, -9.0, 30.0]]).requires_grad_(True)
    weight = double([[2.0, -0.5, 0.1]])
    highest = readout(weight, backend, reduce="max")
    at_begin = readout(weight, backend, reduce="samples", times=[0.0])
    values, gradients = [], []
    for module in (highest, at_begin):
        value = module(Spikes.from_times(times)).sum()
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, [times, module.weight]))
    assert values[0] == pytest.approx(values[1], rel=1e-14)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("name", READOUTS)
def test_gradients_of_readouts(neuron, backend, name, learn_tau):
    torch.manual_seed(3)
    times = (torch.rand(3, 5, dtype=torch.float64) * 50 - 25).sort(1).values
    times[0] = double([-20.0, -11.0, -7.0, -3.0, 45.0])
    module = readout(torch.randn(4, 5, dtype=torch.float64), backend, neuron, learn_tau=learn_tau, **READOUTS[name])
    index = torch.arange(5).expand(3, -1)
    report = assert_exact(
        lambda *_: (module(Spikes(times, index, 5)) + 0.1).square().sum(), [times, *module.parameters()]
    )
    assert report.compared[0].all()


def test_smooth_count_counts_the_window():
    times = double([[[-3.0, 5.0], [-1.0, T_END + 1.0]]]).requires_grad_(True)
    counts = smooth_count(Spikes.from_times(times), T_END, 10.0)
    torch.testing.assert_close(counts, double([[-math.expm1(-3.5), 0.0]]), rtol=1e-12, atol=0)
    counts.sum().backward()
    assert times.grad[0, 0, 1] < 0
    assert times.grad.count_nonzero() == 1


def test_silent_margin_looks_at_the_window(backend):
    """V is highest before 0."""
    layer = SpikingLinear(1, 1, solver=EventDriven(T_END, backend=backend), dtype=torch.float64)
    layer.weight.data.fill_(3.0)
    arrivals = Spikes.from_times(double([[-30.0]]))
    at_begin = 3.0 * decay(double(30.0), 20.0, 5.0)[2]
    assert silent_margin(layer, arrivals, layer(arrivals)).item() == pytest.approx(1.0 - at_begin.item(), rel=1e-12)


def test_a_layer_emits_spikes_from_its_first_arrival(backend):
    layer = SpikingLinear(1, 1, solver=EventDriven(T_END, backend=backend), dtype=torch.float64)
    layer.weight.data.fill_(20.0)
    early, late = layer(Spikes.from_times(double([[-30.0]]))), layer(Spikes.from_times(double([[0.0]])))
    assert early.count().item() > 1
    torch.testing.assert_close(early.time[0, :2] + 30.0, late.time[0, :2], rtol=0, atol=1e-12)


# ---- the bias begins at 0 --------------------------------------------------------------------------------------------


def test_the_bias_begins_at_the_begin_of_the_window():
    neuron = LearnableLIF(1, bias=2.0, dtype=torch.float64)
    layer = SpikingLinear(1, 1, neuron=neuron, solver=EventDriven(T_END), dtype=torch.float64)
    layer.weight.data.fill_(1e-12)
    alone = layer(Spikes.from_times(double([[math.inf]]))).time
    torch.testing.assert_close(layer(Spikes.from_times(double([[-50.0]]))).time, alone, rtol=0, atol=1e-9)
    assert alone[0, 0].item() == pytest.approx(20.0 * math.log(2.0), rel=1e-14)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("refractory", [0.0, 4.0])
def test_gradients_of_neurons_with_a_bias(recurrent, refractory):
    """Arrivals and spikes before 0 and after, of neurons that the bias makes fire, and of others."""
    torch.manual_seed(0)
    neuron = diverse(4, refractory=refractory, learn=ALL)
    options = {"neuron": neuron, "solver": EventDriven(T_END), "dtype": torch.float64}
    layer = SpikingRecurrent(6, 4, delay=1.5, **options) if recurrent else SpikingLinear(6, 4, **options)
    layer.reset_parameters(4.0, 4.0)
    times = (torch.rand(3, 6, dtype=torch.float64) * 50 - 20).sort(1).values
    index = torch.arange(6).expand(3, -1)
    out = layer(Spikes(times, index, 6))
    fired = out.index >= 0
    assert (out.time[fired] < 0).any()
    assert (out.time[fired] > 0).any()

    def loss(*_) -> torch.Tensor:
        return smooth(layer(Spikes(times, index, 6)))

    assert_exact(loss, [times, *layer.parameters()])


# ---- what begins at 0, and what does not -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["exponential", "euler"])
@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("name", READOUTS)
def test_a_grid_refuses_what_comes_before(name, learn_tau, scheme):
    solver = TimeStepped(T_END, 0.5, scheme=scheme)
    if scheme == "euler" and (learn_tau or name not in ("max", "mean")):
        return  # refused when it is built
    module = LeakyReadout(2, 3, solver=solver, learn_tau=learn_tau, **READOUTS[name])
    with pytest.raises(
        ValueError, match="spikes must not come before time 0, got -1.0; shift all times, or use EventDriven"
    ):
        module(Spikes.from_times(torch.tensor([[-1.0, 2.0]])))


def test_recurrence_in_passes_before_the_window():
    """The torch backend repeats the layer as often as spikes can follow one another, from the first arrival on: here one
    goes round and round."""
    trains = []
    for backend in ("numba", "torch"):
        layer = SpikingRecurrent(1, 3, solver=EventDriven(5.0, backend=backend), delay=2.0, dtype=torch.float64)
        layer.weight.data.copy_(double([[9.0], [0.0], [0.0]]))
        layer.recurrent_weight.data.copy_(9.0 * torch.eye(3, dtype=torch.float64).roll(1, 0))
        trains.append(layer(Spikes.from_times(double([[-60.0]]))))
    assert int(trains[0].count().sum()) > 10
    torch.testing.assert_close(trains[0].to_times(), trains[1].to_times(), rtol=0, atol=1e-10)
