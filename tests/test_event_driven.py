"""The event-driven solver: every test that can runs on both backends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import random_network, random_spikes
from scipy.special import lambertw

from eventprop import LIF, EventDriven, Spikes, SpikingLinear
from eventprop.core.neuron import decay
from eventprop.solvers import tape
from eventprop.solvers.event_driven import kernels, reference


@pytest.fixture(params=["numba", "torch"])
def solver(request) -> EventDriven:
    return EventDriven(t_end=40.0, backend=request.param)


def one_spike(time: float = 0.0) -> Spikes:
    return Spikes.from_times(torch.tensor([[time]], dtype=torch.float64))


def random_weight(inputs: int, outputs: int, neuron: LIF) -> torch.Tensor:
    """Weights of both signs with which inputs that spike twice make most neurons fire more than once."""
    unit = neuron.minimum_weight
    return 0.5 * unit * torch.randn(outputs, inputs, dtype=torch.float64) + 0.2 * unit


def superposed(arrivals: Spikes, row: torch.Tensor, own: torch.Tensor, neuron: LIF, t: torch.Tensor) -> torch.Tensor:
    """V(t) of one neuron with weights ``row``: the sum of what each arrival adds, less what each own spike before t takes
    away. It knows nothing of events, intervals or stored states."""
    real = arrivals.index[0] >= 0
    since = t[:, None] - arrivals.time[0, real]
    _, _, phi = decay(since.clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
    taken = torch.where(t[:, None] > own, torch.exp(-(t[:, None] - own).clamp(min=0.0) / neuron.tau_mem), 0.0)
    return phi @ row[arrivals.index[0, real]] - neuron.v_th * taken.sum(1)


# ---- the forward pass against closed forms ---------------------------------------------------------------------------


def test_first_spike_for_tau_mem_twice_tau_syn(solver):
    """V = w (x - x^2) with x = exp(-t/tau_mem): a quadratic in x."""
    neuron, w = LIF(20.0, 10.0), torch.tensor([[4.001], [5.0], [50.0], [1e3]], dtype=torch.float64)
    first = solver.spikes(one_spike(), w, neuron).first_spike_time()[0]
    root = (
        2 * neuron.v_th / (w + (w * w - 4 * w * neuron.v_th).sqrt())
    )  # the smaller root for 1 - x, without cancellation
    expected = -neuron.tau_mem * torch.log1p(-root).squeeze(1)
    torch.testing.assert_close(
        first, expected, rtol=1e-11, atol=1e-14
    )  # rounding of V over the slope, 1e-4 at w = 4.001


def test_first_spike_for_equal_time_constants(solver):
    """V = w (t/tau) exp(-t/tau): the Lambert W function."""
    neuron, w = LIF(10.0, 10.0), np.array([2.72, 3.0, 30.0, 1e3])
    first = solver.spikes(one_spike(), torch.from_numpy(w)[:, None], neuron).first_spike_time()[0]
    expected = -10.0 * lambertw(-1.0 / w, 0).real
    np.testing.assert_allclose(first.numpy(), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("excess", [0.0, 1e-16, 1e-15, 1e-13, 1e-11, 1e-7])
@pytest.mark.parametrize("gap", [0.01, 0.1, 3.0])
def test_a_crossing_just_before_an_arrival_is_as_exact_as_any(solver, gap, excess):
    """P2 where V reaches the threshold with the next arrival, up to rounding."""
    unit = torch.tensor(gap, dtype=torch.float64)
    weight = torch.tensor([[(1.0 + excess) / decay(unit, 20.0, 5.0)[2], 0.0]], dtype=torch.float64)
    arrivals = Spikes.from_times(torch.tensor([[0.0, gap]], dtype=torch.float64))
    at = solver.spikes(arrivals, weight, LIF()).time[0, 0]
    assert abs(float(weight[0, 0] * decay(at, 20.0, 5.0)[2]) - 1.0) <= 1e-12


@pytest.mark.parametrize(("peak", "fires"), [(1.0001, True), (0.9999, False)])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_no_crossing_is_missed_or_invented(backend, peak, fires):
    """P1: 100,000 neurons whose potential peaks at ``peak`` v_th, in closed form, after two arrivals."""
    torch.manual_seed(0)
    n, neuron = 100_000, LIF(20.0, 5.0)
    ratio = torch.rand(n, dtype=torch.float64) * 1.5 - 0.2  # of the first weight to the second
    gap, c = 3.0, neuron.tau_syn / (neuron.tau_mem - neuron.tau_syn)
    v = ratio * c * (math.exp(-gap / neuron.tau_mem) - math.exp(-gap / neuron.tau_syn))
    i = ratio * math.exp(-gap / neuron.tau_syn) + 1.0
    # after the second arrival V = P exp(-t/tau_mem) - Q exp(-t/tau_syn), with its maximum where the two slopes are equal
    p, q = v + c * i, c * i
    t = (torch.log(q / p) + math.log(neuron.tau_mem / neuron.tau_syn)) / (1 / neuron.tau_syn - 1 / neuron.tau_mem)
    highest = p * torch.exp(-t / neuron.tau_mem) - q * torch.exp(-t / neuron.tau_syn)
    assert (t > 0).all()
    assert (highest > v).all()
    weight = torch.stack([ratio, torch.ones_like(ratio)], dim=1) * (peak * neuron.v_th / highest)[:, None]
    arrivals = Spikes.from_times(torch.tensor([[1.0, 1.0 + gap]], dtype=torch.float64))
    out = EventDriven(t_end=60.0, backend=backend).spikes(arrivals, weight, neuron)
    assert int((out.count() > 0).sum()) == (n if fires else 0)


def test_spikes_lie_on_the_threshold_and_none_is_missing(solver, neuron):
    """P2, and no crossing between the spikes: against the superposition of all arrivals and resets."""
    torch.manual_seed(1)
    total = 0
    for _ in range(5):
        arrivals, weight = random_spikes(1, 15), random_weight(15, 12, neuron)
        out = solver.spikes(arrivals, weight, neuron)
        for n in range(12):
            own = out.time[0, out.index[0] == n]
            at_spikes = superposed(arrivals, weight[n], own, neuron, own)
            assert ((at_spikes - neuron.v_th).abs() <= 1e-12).all()
            grid = torch.linspace(0, solver.t_end, 4001, dtype=torch.float64)
            assert (superposed(arrivals, weight[n], own, neuron, grid) <= neuron.v_th + 1e-12).all()
            total += len(own)
    assert total > 100


def test_slope_is_the_slope_at_the_spike(solver, neuron):
    torch.manual_seed(2)
    arrivals, weight = random_spikes(1, 15), random_weight(15, 6, neuron)
    out = solver.spikes(arrivals, weight, neuron)
    h = 1e-5
    for t, n, slope in zip(out.time[0], out.index[0], out.slope[0], strict=True):
        own = out.time[0, out.index[0] == n]
        before = superposed(arrivals, weight[n], own, neuron, torch.stack([t - h, t]))
        # a one-sided difference: wrong by h V''/2, and V'' <= I/(tau_mem tau_syn)
        assert float(slope) == pytest.approx(float(before[1] - before[0]) / h, abs=5e-5, rel=1e-4)


def test_backends_agree(neuron):
    torch.manual_seed(3)
    for batch, inputs, outputs in [(5, 20, 17), (3, 4, 1), (2, 30, 70)]:
        arrivals, weight_t = random_spikes(batch, inputs), random_weight(inputs, outputs, neuron).t().contiguous()
        arrivals.time[0] = arrivals.time[0].round()  # simultaneous arrivals
        a, b = (x.forward(arrivals.time, arrivals.index, weight_t, neuron, 40.0) for x in (kernels, reference))
        assert torch.equal(a.neuron, b.neuron)
        assert torch.equal(a.after, b.after)
        torch.testing.assert_close(a.time, b.time, rtol=0, atol=1e-12)
        torch.testing.assert_close(a.slope, b.slope, rtol=1e-12, atol=1e-12)
        grad = torch.randn_like(a.time)
        arguments = (arrivals.time, arrivals.index, weight_t.t(), a, grad, neuron, neuron.v_th, 40.0, True, True)
        for x, y in zip(kernels.adjoint(*arguments), reference.adjoint(*arguments), strict=True):
            assert float((x - y).abs().max()) <= 1e-12 * float(x.abs().max())
        arguments = (arrivals.time, arrivals.index)
        received = [
            x.average(*arguments, weight_t.new_zeros(len(arrivals), inputs), neuron, 40.0) for x in (kernels, reference)
        ]
        torch.testing.assert_close(*received, rtol=0, atol=1e-12)
        grad = torch.randn_like(received[0])
        shares = [x.average_adjoint(*arguments, grad, neuron, 40.0) for x in (kernels, reference)]
        torch.testing.assert_close(*shares, rtol=0, atol=1e-12)
        lower = weight_t - 0.2 * neuron.minimum_weight
        c, d = (x.maximum(arrivals.time, arrivals.index, lower, neuron, 40.0) for x in (kernels, reference))
        assert torch.equal(c.after, d.after)
        assert torch.equal(c.arrival, d.arrival)
        torch.testing.assert_close(c.value, d.value, rtol=0, atol=1e-12)
        torch.testing.assert_close(c.slope, d.slope, rtol=0, atol=1e-12)


def test_simultaneous_arrivals_act_as_one(solver, neuron):
    """The order of simultaneous arrivals has no meaning: excitation and inhibition at one time act as their sum."""
    unit = neuron.minimum_weight
    together = Spikes.from_times(torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    split = torch.tensor([[9.0 * unit, -6.0 * unit]], dtype=torch.float64)
    expected = solver.spikes(one_spike(2.0), split.sum(1, keepdim=True), neuron)
    assert torch.equal(solver.spikes(together, split, neuron).time, expected.time)
    assert torch.equal(solver.spikes(together, split.flip(1), neuron).time, expected.time)


def test_arrivals_after_the_window_have_no_effect(solver):
    weight = torch.full((1, 2), 10.0, dtype=torch.float64, requires_grad=True)
    out = solver.spikes(Spikes.from_times(torch.tensor([[1.0, 41.0]], dtype=torch.float64)), weight, LIF())
    assert out.count().tolist() == [[1]]
    out.time.sum().backward()
    assert weight.grad is not None
    assert weight.grad[0, 1] == 0


# ---- promises, as docs/promises.md has them --------------------------------------------------------------------------


def test_float32_stays_close_to_float64_over_a_long_window():
    """P6: within 1e-3 ms over 1,000 ms."""
    torch.manual_seed(0)
    neuron, solver = LIF(20.0, 5.0), EventDriven(t_end=1000.0)
    arrivals = random_spikes(8, 100, per_neuron=20, window=1000.0, dtype=torch.float32)
    weight = random_weight(100, 50, neuron).float()
    single = solver.spikes(arrivals, weight, neuron)
    double = solver.spikes(arrivals.to(torch.float64), weight.double(), neuron)
    assert int(single.count().sum()) > 10_000
    assert torch.equal(single.count(), double.count())
    apart = (single.to_times().double() - double.to_times()).abs().nan_to_num()
    assert float(apart.max()) <= 1e-3


def test_a_batch_equals_its_samples_alone(solver):
    """P7: bit for bit with numba; torch's vectorised exponentials round the last elements of a tensor differently."""
    torch.manual_seed(4)
    arrivals, weight = random_spikes(6, 10), random_weight(10, 9, LIF())
    whole = solver.spikes(arrivals, weight, LIF())
    for b in range(6):
        alone = solver.spikes(arrivals.select(torch.tensor([b])), weight, LIF())
        tolerance = 0.0 if solver.backend == "numba" else 1e-12
        torch.testing.assert_close(whole.select(torch.tensor([b])).time, alone.time, rtol=0, atol=tolerance)
        assert torch.equal(whole.select(torch.tensor([b])).index, alone.index)


def test_results_do_not_depend_on_the_number_of_threads():
    """P7, bit for bit, gradients included."""
    torch.manual_seed(5)
    arrivals = random_spikes(40, 30, dtype=torch.float32)
    arrivals.time.requires_grad_(True)
    weight = random_weight(30, 150, LIF()).float().requires_grad_(True)
    results, saved = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = EventDriven(40.0).spikes(arrivals, weight, LIF())
            real = torch.isfinite(out.time)
            results.append((out.time, *torch.autograd.grad(out.time[real].square().sum(), (arrivals.time, weight))))
    finally:
        torch.set_num_threads(saved)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_forward_changes_nothing(solver):
    """P4: no parameter, no random state, no hidden state; the same input gives the same output."""
    torch.manual_seed(6)
    layer = SpikingLinear(10, 8, solver=solver, dtype=torch.float64)
    arrivals, weight = random_spikes(3, 10), layer.weight.detach().clone()
    before = torch.get_rng_state(), arrivals.time.clone(), arrivals.index.clone()
    first, second = layer(arrivals), layer(arrivals)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(arrivals.time, before[1])
    assert torch.equal(arrivals.index, before[2])
    assert torch.equal(first.time, second.time)


@pytest.mark.parametrize("factor", [0.01, 3.0, 1000.0])
def test_spike_times_scale_with_all_times(solver, neuron, factor):
    """P8: milliseconds are only a name."""
    torch.manual_seed(7)
    arrivals, weight = random_spikes(2, 10), random_weight(10, 6, neuron)
    out = solver.spikes(arrivals, weight, neuron)
    scaled = EventDriven(40.0 * factor, backend=solver.backend).spikes(
        Spikes(arrivals.time * factor, arrivals.index, 10),
        weight,
        LIF(neuron.tau_mem * factor, neuron.tau_syn * factor),
    )
    assert torch.equal(scaled.index, out.index)
    torch.testing.assert_close(scaled.time, out.time * factor, rtol=1e-11, atol=0)  # rounding over slopes down to 1e-4


def test_shifting_inputs_shifts_outputs(solver, neuron):
    """P8, and its consequence for the gradient: the derivatives of a spike time by all input times sum to one."""
    torch.manual_seed(8)
    arrivals, weight = random_spikes(1, 10), random_weight(10, 4, neuron)
    arrivals.time.requires_grad_(True)
    out = solver.spikes(arrivals, weight, neuron)
    shifted = EventDriven(45.0, backend=solver.backend).spikes(
        Spikes(arrivals.time + 5.0, arrivals.index, 10), weight, neuron
    )
    torch.testing.assert_close(shifted.time, out.time + 5.0, rtol=0, atol=1e-10)
    for t in out.time[0]:
        (gradient,) = torch.autograd.grad(t, arrivals.time, retain_graph=True)
        assert float(gradient.sum()) == pytest.approx(1.0, abs=1e-9)  # rounding over slopes down to 1e-4


def test_many_spikes_make_the_buffers_grow(neuron):
    """P5: far more spikes than the first guess of the buffer, and none is dropped."""
    weight = torch.full((1, 1), 1000 * neuron.minimum_weight, dtype=torch.float64)
    counts = [
        EventDriven(60.0, backend=b).spikes(one_spike(), weight, neuron).count().item() for b in ("numba", "torch")
    ]
    assert counts[0] == counts[1] > 4 * 1 + 64


def test_too_many_spikes_are_refused_with_their_number(solver, monkeypatch):
    """P5: the call raises and says what to do."""
    weight = torch.full((1, 1), 1e9, dtype=torch.float64)
    if solver.backend == "torch":  # the reference takes minutes to emit a million spikes one after the other
        monkeypatch.setattr(tape, "MAX_SPIKES_PER_SAMPLE", 500)
    with pytest.raises(ValueError, match=r"weight makes one sample emit more than [\d,]+ spikes; lower the weights"):
        solver.spikes(one_spike(), weight, LIF())


# ---- borders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("columns", [0, 1])
def test_nothing_in_nothing_out(solver, batch, columns):
    """An empty batch, and a batch without a spike."""
    time = torch.full((batch, columns), math.inf, dtype=torch.float64, requires_grad=True)
    silence = Spikes(time, torch.full((batch, columns), -1), 4)
    network = random_network([4, 3, 2], LIF(), solver)
    out = network(silence)
    assert out.count().tolist() == [[0, 0]] * batch
    assert torch.isinf(out.first_spike_time()).all()
    out.time.sum().backward()
    for readout in ("max", "mean"):
        network = torch.nn.Sequential(*network, *random_network([2, 2], LIF(), solver, readout))
        voltage = network(silence)
        assert torch.equal(voltage, torch.zeros(batch, 2, dtype=torch.float64))
        voltage.sum().backward()
        for gradient in (time.grad, *(p.grad for p in network.parameters())):
            assert gradient is not None
            assert not gradient.any()
        network = network[:2]


def test_a_silent_sample_among_others_has_gradient_zero(solver):
    torch.manual_seed(9)
    times = torch.rand(3, 6, dtype=torch.float64) * 20
    times[1] = math.inf
    times.requires_grad_(True)
    network = random_network([6, 5, 4], LIF(), solver, "max")
    loss = network(Spikes.from_times(times)).square().sum()
    gradients = torch.autograd.grad(loss, [times, *network.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not gradients[0][1].any()
    assert gradients[0][0].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(solver, bad):
    weight = torch.ones(2, 1, dtype=torch.float64)
    weight[1, 0] = bad
    with pytest.raises(ValueError, match="weight must be finite"):
        solver.spikes(one_spike(), weight, LIF())
    with pytest.raises(ValueError, match="weight must be finite"):
        solver.readout(one_spike(), weight, LIF(), "max")


def test_a_wrong_input_is_refused(solver):
    arrivals, weight = one_spike(), torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"must be Spikes, got Tensor"):
        solver.spikes(arrivals.time, weight, LIF())
    with pytest.raises(TypeError, match=r"float64 but weight is torch.float32"):
        solver.spikes(arrivals, weight.float(), LIF())
    with pytest.raises(TypeError, match=r"weight must be float32 or float64, got torch.float16"):
        solver.spikes(arrivals, weight.half(), LIF())
    with pytest.raises(ValueError, match=r"num_neurons=1 but weight \[2, 3\] takes 3"):
        solver.spikes(arrivals, torch.ones(2, 3, dtype=torch.float64), LIF())
    with pytest.raises(ValueError, match=r"spikes are on cpu but weight is on meta"):
        solver.spikes(arrivals, weight.to("meta"), LIF())
    with pytest.raises(ValueError, match=r"reduce must be one of 'max', 'mean', got 'sum'"):
        solver.readout(arrivals, weight, LIF(), "sum")


def test_options_are_checked():
    with pytest.raises(ValueError, match="t_end must be positive"):
        EventDriven(t_end=0.0)
    with pytest.raises(TypeError, match="t_end must be a positive number"):
        EventDriven(t_end="40")
    with pytest.raises(ValueError, match="grazing must be one of 'raw', 'clamp', 'saturate', 'drop', got 'no'"):
        EventDriven(40.0, grazing="no")
    with pytest.raises(ValueError, match="backend must be one of"):
        EventDriven(40.0, backend="cuda")
    with pytest.raises(ValueError, match="min_slope must be positive"):
        EventDriven(40.0, min_slope=-1.0)
