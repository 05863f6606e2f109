"""The baseline's current-based neurons: eventprop's spikes, with the surrogate gradient of an independent simulation."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_exact, random_spikes
from torch import nn

from eventprop import (
    LIF,
    GridSpikes,
    LeakyReadout,
    SpikeDropout,
    Spikes,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    smooth_count,
)
from eventprop.losses import FirstSpike, MaxVoltage, MeanVoltage
from eventprop.training.networks import fully_connected
from surrogate_baseline.solver import RasterSpikes, SurrogateTimeStepped
from surrogate_baseline.surrogates import Arctan, FastSigmoid

T_END, DT = 30.0, 0.5


class Fire(torch.autograd.Function):
    """Whether a neuron ``fired``, with the derivative of an arctan by its potential above the threshold, x."""

    @staticmethod
    def forward(ctx, x, fired):
        ctx.save_for_backward(x)
        return fired.to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1.0 + (math.pi * x) ** 2), None


def bisect(low, high, under):
    """The place between ``low`` and ``high`` up to which ``under`` holds."""
    for _ in range(60):
        middle = (low + high) / 2
        below = under(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def crossing(v, i, psp, psc, neuron):
    """Which neurons cross the threshold in a step that begins at (v, i), and how long before its end, by bisection. What has
    come in the step comes at the one time that explains (psp, psc), or else at the begin, as much as explains psp."""
    full = torch.full_like(v, DT)
    (whole_psp, whole_psc), ratio = phi_and_s(full, neuron), psp / psc
    inside = (ratio >= 0) & (ratio <= whole_psp / whole_psc)
    y = bisect(torch.zeros_like(v), full, lambda y: phi_and_s(y, neuron)[0] / phi_and_s(y, neuron)[1] < ratio)
    y, weight = torch.where(inside, y, DT), torch.where(inside, psc / phi_and_s(y, neuron)[1], psp / whole_psp)

    def potential(x):
        phi, later = phi_and_s(x, neuron)[0], phi_and_s((x - (DT - y)).clamp(min=0.0), neuron)[0]
        return v * torch.exp(-x / neuron.tau_mem) + i * phi + weight * later

    points = torch.linspace(0.0, DT, 201, dtype=torch.float64)
    above = torch.stack([potential(x.expand_as(v)) for x in points]) >= neuron.v_th
    first = above.double().argmax(0).clamp(min=1)
    at = bisect(points[first - 1], points[first], lambda x: potential(x) < neuron.v_th)
    return above.any(0), DT - at


def simulate(effects: torch.Tensor, weight: torch.Tensor, neuron: LIF, detach: bool, back=None, delay=0.0):
    """Steps [T] of (spike [B, N], the time of the spike before the end of its step), by autograd and bisection; of a layer that
    may get its own spikes ``back``, each ``delay`` ms later."""
    flow = torch.tensor([[-1 / neuron.tau_mem, 1 / neuron.tau_mem], [0.0, -1 / neuron.tau_syn]], dtype=torch.float64)
    (a, phi), (_, s) = torch.matrix_exp(flow * DT).tolist()
    v = i = effects.new_zeros(effects.shape[2], len(weight))
    spikes, offsets = [], []
    own = [effects.new_zeros(2, effects.shape[2], len(weight)) for _ in range(effects.shape[1])]
    for step, (psp, psc) in enumerate(effects.unbind(1)):
        psp, psc = psp @ weight.T, psc @ weight.T
        if back is not None:
            psp, psc = psp + own[step][0] @ back.T, psc + own[step][1] @ back.T
        fired, y = crossing(*(x.detach() for x in (v, i, psp, psc)), neuron)
        h, i = a * v + phi * i + psp, s * i + psc
        y = torch.where(fired, y, 0.0)
        spike = Fire.apply(h - neuron.v_th, fired)
        fall = neuron.v_th * torch.exp(-y / neuron.tau_mem)
        v = h - fall * (spike.detach() if detach else spike)
        assert (v < neuron.v_th).all(), "the problem must have one spike per step at most"
        spikes.append(spike)
        offsets.append(y)
        if back is not None:
            at = (step + 1) * DT - y + delay
            arrives = (at / DT + 1e-9).floor().long()  # rounding: a grid point belongs to the step after it
            effect = torch.stack([spike * x for x in phi_and_s((arrives + 1) * DT - at, neuron)])
            for k in arrives.unique().tolist():
                if k < len(own):
                    own[k] = own[k] + torch.where(arrives == k, effect, 0.0)
    return torch.stack(spikes), torch.stack(offsets)


def phi_and_s(y, neuron):
    """Closed form of the postsynaptic potential for different time constants."""
    a, s = torch.exp(-y / neuron.tau_mem), torch.exp(-y / neuron.tau_syn)
    return (a - s) / (1 - neuron.tau_syn / neuron.tau_mem) * neuron.tau_syn / neuron.tau_mem, s


def integrated(y, neuron):
    """Integral of the postsynaptic potential from 0 to ``y``, by the trapezoidal rule."""
    points = torch.linspace(0.0, 1.0, 20001, dtype=torch.float64) * y[:, None]
    return torch.trapezoid(phi_and_s(points, neuron)[0], points)


def problem(neuron: LIF):
    torch.manual_seed(2)
    spikes = random_spikes(6, 5, per_neuron=2)
    weights = [neuron.minimum_weight * (0.15 + 0.3 * torch.randn(*shape).double()) for shape in ((7, 5), (4, 7))]
    return spikes, [w.requires_grad_() for w in weights]


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("output", ["spikes", "mean", "max"])
@pytest.mark.parametrize("taus", [(20.0, 5.0), (6.0, 10.0)])
def test_spikes_and_gradients_are_those_of_an_independent_simulation(taus, output, detach):
    neuron = LIF(*taus)
    spikes, weights = problem(neuron)
    solver = SurrogateTimeStepped(T_END, DT, surrogate=Arctan(2.0), detach_reset=detach)
    hidden = solver.spikes(spikes, weights[0], neuron)

    effects = GridSpikes.from_spikes(spikes, DT, T_END).channels(neuron)
    raster, y = simulate(effects, weights[0], neuron, detach)
    assert raster.sum() > 20
    assert torch.equal(hidden.raster, raster)
    psp, psc = phi_and_s(y, neuron)
    seen = torch.stack([raster * psp, raster * psc])
    if output == "spikes":
        found = solver.spikes(hidden, weights[1], neuron).raster
        expected, _ = simulate(seen, weights[1], neuron, detach)
        assert expected.sum() > 5
        assert torch.equal(found, expected)
    else:
        found = solver.readout(hidden, weights[1], neuron, output)
        n = 4000 if output == "mean" else 1  # points of the trapezoidal rule within a step
        v, i, integral, highest = 0.0, 0.0, 0.0, torch.zeros(6, 4, dtype=torch.float64)
        if output == "max":
            flow = [phi_and_s(torch.tensor(DT, dtype=torch.float64), neuron), math.exp(-DT / neuron.tau_mem)]
            for p, c in seen.unbind(1):
                v = flow[1] * v + flow[0][0] * i + p @ weights[1].T
                i = flow[0][1] * i + c @ weights[1].T
                highest = torch.where(v > highest, v, highest)
            expected = highest
        else:  # the average potential by the rule of Simpson over time, every spike at its own time
            ends = DT * torch.arange(1, round(T_END / DT) + 1).double()[:, None, None]
            fine = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
            after = (T_END - (ends - y))[..., None] * fine
            rule = torch.ones(n + 1).double()
            rule[1:-1:2], rule[2:-1:2] = 4.0, 2.0
            integral = (phi_and_s(after, neuron)[0] * rule).sum(-1) * (T_END - (ends - y)) / (3 * n)
            expected = (raster * integral).sum(0) @ weights[1].T / T_END
    if output == "max":  # the value is that of continuous time, the surrogate gradient that of the ends of the steps
        assert (found >= expected - 1e-12).all()
        weights = weights[:1]
    else:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # Simpson's rule
    cotangent = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * cotangent).sum(), weights, retain_graph=True) for x in (found, expected)]
    for exact, independent in zip(*gradients, strict=True):
        assert exact.abs().max() > 1e-3
        torch.testing.assert_close(exact, independent, rtol=1e-6, atol=1e-9)  # the promise; seen: rounding


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("delay", [DT, 0.7, 4.0])
def test_feedback_is_that_of_an_independent_simulation(delay, detach):
    """Through two recurrent layers: spikes, and the surrogate gradients of all weights."""
    neuron = LIF()
    spikes, weights = problem(neuron)
    solver = SurrogateTimeStepped(T_END, DT, surrogate=Arctan(2.0), detach_reset=detach)
    effects, found = GridSpikes.from_spikes(spikes, DT, T_END).channels(neuron), spikes
    parameters = []
    for (n, m), std in zip(((7, 5), (4, 7)), (0.3, 0.4), strict=True):
        layer = SpikingRecurrent(m, n, solver=solver, neuron=neuron, delay=delay, dtype=torch.float64)
        layer.weight.data.copy_(weights[len(parameters) // 2])
        layer.recurrent_weight.data.normal_(0.0, std * neuron.minimum_weight)
        found = layer(found)
        raster, y = simulate(effects, layer.weight, neuron, detach, layer.recurrent_weight, delay)
        assert raster.sum() > 5
        assert torch.equal(found.raster, raster)
        effects = torch.stack([raster * x for x in phi_and_s(y, neuron)])
        parameters += [layer.weight, layer.recurrent_weight]
    cotangent = torch.randn_like(raster)
    gradients = [
        torch.autograd.grad((x * cotangent).sum(), parameters, retain_graph=True) for x in (found.raster, raster)
    ]
    for exact, independent in zip(*gradients, strict=True):
        assert exact.abs().max() > 1e-3
        torch.testing.assert_close(exact, independent, rtol=1e-6, atol=1e-9)  # the promise; seen: rounding


def test_feedback_has_the_spikes_of_eventprop():
    """Bit for bit, with several spikes per step among them."""
    torch.manual_seed(3)
    spikes, found = random_spikes(20, 30, dtype=torch.float32), []
    for solver in (TimeStepped(T_END, DT), SurrogateTimeStepped(T_END, DT)):
        torch.manual_seed(4)
        layer = SpikingRecurrent(30, 40, solver=solver, delay=0.8)
        layer.reset_parameters(mean=3.0, std=8.0)
        found.append(layer(spikes))
    assert found[1].raster.max() > 1
    assert torch.equal(found[0].time, found[1].time)
    assert torch.equal(found[1].raster.sum(0).long(), found[0].count())


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("time", [0.3, 0.25])
def test_a_spike_on_a_grid_point_counts_in_the_step_that_emitted_it(time, reduce):
    """0.3 is a grid point that belongs to the step after it: as a spike held there by inhibition, or by rounding."""
    neuron, w, dt, t_end, step = LIF(), 2.0, 0.1, 0.5, 2
    raster = torch.zeros(5, 1, 1, dtype=torch.float64)
    raster[step] = 1.0
    spikes = RasterSpikes(
        torch.tensor([[time]], dtype=torch.float64), torch.tensor([[0]]), 1, dt=dt, t_end=t_end, step=torch.tensor([[step]]),
        raster=raster.requires_grad_(), potential=lambda: raster,
    )  # fmt: skip
    readout = SurrogateTimeStepped(t_end, dt).readout(spikes, torch.tensor([[w]]).double(), neuron, reduce)
    (gradient,) = torch.autograd.grad(readout.sum(), raster)
    times = torch.tensor([0.1, 0.2, time, 0.4, 0.5], dtype=torch.float64)  # where a spike of each step lies
    phi = phi_and_s(t_end - times, neuron)[0]
    if reduce == "mean":
        phi = integrated(t_end - times, neuron) / t_end
    torch.testing.assert_close(gradient.flatten(), w * phi, rtol=1e-7, atol=1e-12)  # the quadrature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_equal_weights_give_the_spikes_of_eventprop(backend, dtype):
    """Through two layers, several spikes per neuron and step among them."""
    torch.manual_seed(3)
    neuron = LIF()
    spikes = random_spikes(20, 30, per_neuron=2, dtype=dtype)
    exact = TimeStepped(T_END, DT, backend=backend)
    surrogate = SurrogateTimeStepped(T_END, DT, backend=backend)
    weights = [neuron.minimum_weight * 1.5 * torch.randn(n, m, dtype=dtype) for n, m in ((40, 30), (10, 40))]
    found = expected = spikes
    for weight in weights:
        found = surrogate.spikes(found, weight.requires_grad_(), neuron)
        expected = exact.spikes(expected, weight, neuron)
        assert found.raster.max() > 1
        assert torch.equal(found.to_raster(DT, T_END), expected.to_raster(DT, T_END))
        assert torch.equal(found.raster.sum(0).long(), expected.count())
        # the sums of the second layer are of another order, and so of other rounding
        torch.testing.assert_close(found.time, expected.time, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("objective", [MeanVoltage(), MaxVoltage(), FirstSpike()])
def test_networks_have_the_loss_of_eventprop(objective):
    losses = []
    spikes, target = random_spikes(8, 20), torch.randint(5, (8,))
    for solver in (TimeStepped(T_END, DT), SurrogateTimeStepped(T_END, DT)):
        torch.manual_seed(0)
        network = fully_connected(20, 5, objective, LIF(), solver, hidden=[15], dtype=torch.float64)
        losses.append(objective(network(spikes), target))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)  # products of another shape: rounding
    gradients = torch.autograd.grad(losses[1], list(network.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_the_gradient_of_a_readout_weight_is_exact(reduce):
    """Only a spike of the layer itself has a surrogate derivative."""
    torch.manual_seed(1)
    solver = SurrogateTimeStepped(T_END, DT)
    hidden = SpikingLinear(6, 8, solver=solver, dtype=torch.float64)
    readout = LeakyReadout(8, 3, reduce=reduce, solver=solver, dtype=torch.float64)
    spikes = random_spikes(4, 6)
    assert_exact(lambda _: readout(hidden(spikes)).square().sum(), [readout.weight])


def test_first_spike_time_is_differentiable_in_the_raster():
    """A polynomial whose values on rasters are the times of first spikes, so that derivatives are differences of flips."""
    solver, neuron = SurrogateTimeStepped(5.0, 1.0), LIF()
    weight = torch.tensor([[3.0 * neuron.minimum_weight]], dtype=torch.float64)
    spikes = solver.spikes(Spikes.from_times(torch.tensor([[0.5]]).double()), weight.requires_grad_(), neuron)
    k, following, *_ = spikes.raster.flatten().nonzero().flatten().tolist()
    first, second = spikes.time[0, :2].tolist()
    (gradient,) = torch.autograd.grad(spikes.first_spike_time().sum(), spikes.raster)
    ends = [float(step + 1) for step in range(5)]
    expected = [end - first for end in ends[:k]] + [first - second] + [0.0] * (4 - k)  # before, the first itself, after
    assert k > 0
    assert following < 5
    torch.testing.assert_close(gradient.flatten(), torch.tensor(expected).double())


def test_convolutions():
    torch.manual_seed(0)
    solver = SurrogateTimeStepped(T_END, DT, surrogate=FastSigmoid(5.0))
    synapses = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3, bias=False))
    first, second = (
        SpikingLayer(synapses.double(), solver=solver),
        SpikingLayer(nn.Conv2d(3, 2, 2, bias=False).double(), solver=solver),
    )
    for layer in (first, second):
        layer.reset_parameters()
    spikes = random_spikes(3, 36)
    output = second(first(spikes))
    assert output.shape == (2, 3, 3)
    output.raster.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in first.parameters())


def test_silence_and_empty_batches():
    solver, neuron = SurrogateTimeStepped(T_END, DT), LIF()
    weight = torch.zeros(3, 2, requires_grad=True)
    for times in (torch.full((4, 2), math.inf), torch.zeros(0, 2)):
        hidden = solver.spikes(Spikes.from_times(times), weight, neuron)
        output = solver.readout(hidden, torch.ones(5, 3), neuron, "mean")
        assert output.shape == (len(times), 5)
        assert not output.any()
        output.sum().backward()
        assert torch.isfinite(weight.grad).all()
        assert torch.isinf(hidden.first_spike_time()).all()


def test_layers_must_share_a_grid():
    neuron = LIF()
    hidden = SurrogateTimeStepped(30.0, 1.0).spikes(random_spikes(3, 4), torch.randn(5, 4).double(), neuron)
    other, weight = SurrogateTimeStepped(15.0, 0.5), torch.randn(2, 5).double()
    for call in (lambda: other.spikes(hidden, weight, neuron), lambda: other.readout(hidden, weight, neuron, "mean")):
        with pytest.raises(
            ValueError, match=r"on the grid of this layer, dt=0.5 and t_end=15.0; it is on one of\s+dt=1.0"
        ):
            call()


def test_derived_spikes_carry_no_gradient():
    solver, neuron = SurrogateTimeStepped(T_END, DT), LIF()
    hidden = solver.spikes(random_spikes(3, 4), torch.randn(5, 4).double().requires_grad_(), neuron)
    assert isinstance(hidden, RasterSpikes)
    assert type(hidden.select(torch.tensor([1]))) is GridSpikes
    assert type(hidden.detach()) is GridSpikes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "euler"}, "scheme must be 'exponential' for surrogate gradients, got 'euler'"),
        ({"grazing": "clamp"}, "grazing must be 'raw'"),
        ({"dt": 0.7}, "t_end must be a whole number of steps"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SurrogateTimeStepped(**{"t_end": T_END, "dt": DT, **options})


@pytest.mark.parametrize(
    "lossy",
    [
        lambda spikes: spikes.reshape(2, 2),
        lambda spikes: SpikeDropout(0.5).train()(spikes),
        lambda spikes: smooth_count(spikes, 40.0, 10.0),
    ],
)
def test_what_would_lose_the_surrogate_gradient_is_refused(lossy):
    layer = SpikingLinear(3, 4, solver=SurrogateTimeStepped(40.0, 1.0))
    spikes = layer(Spikes.from_times(torch.rand(2, 3)))
    with pytest.raises(TypeError, match="surrogate gradients do not pass through"):
        lossy(spikes)
    assert spikes.count().shape == (2, 4)
