"""Every loss over its whole domain of times and parameters: right, with the right gradient, or refused by name.

The oracle is the formula in 50 digits, whose exponents do not end. A refusal must be justified: a term of the loss, or of its
gradient, has no number in the dtype.
"""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from eventprop import (
    EventDriven,
    Spikes,
    SpikingLinear,
    TimeStepped,
    first_spike_cross_entropy,
    silent_margin,
    smooth_count,
    spike_count_cross_entropy,
    spike_count_penalty,
    spike_time_mse,
)
from eventprop.losses import (
    FirstSpike,
    MaxVoltage,
    MeanVoltage,
    ParameterError,
    SpikeCount,
    WeightedVoltage,
    cross_entropy,
)
from surrogate_baseline.losses import FirstSpikeStep, MaxPotential, RateCrossEntropy, RateMSE

INF = math.inf
DTYPES = [torch.float32, torch.float64]
mpmath.mp.dps = 50


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda x: 10.0**x)


scales = st.one_of(powers(-30.0, 30.0), powers(-1.0, 3.0), st.sampled_from([0.5, 6.4, 10.0]))
weights = st.one_of(st.just(0.0), powers(-30.0, 30.0), st.just(3e-3))
moments = st.one_of(
    st.sampled_from([0.0, -0.0, INF, 40.0, 39.999, 600.0, 1e9, -1e9]),
    powers(-9.0, 9.0),
    powers(-9.0, 9.0).map(lambda t: -t),
    st.floats(0.0, 40.0),
    st.floats(0.0, 3000.0),
)


@st.composite
def tables(draw, *shape: int) -> torch.Tensor:
    """A tensor [B, C, ...] of times; now and then with rows that are all silent."""
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = (batch, classes, *shape)
    values = draw(st.lists(moments, min_size=math.prod(size), max_size=math.prod(size)))
    table = torch.tensor(values, dtype=torch.float64).reshape(size)
    if draw(st.integers(0, 4)) == 0:
        table[0] = INF
    return table


def labels(times: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(times)) % times.shape[1]


def exact(x: float) -> mpf:
    return mpf(float(x))


def compare(loss, times: torch.Tensor, expected: mpf, gradient, terms, rtol: float, atol: float) -> None:
    """``loss(times)`` against ``expected`` +- ``atol``, and its gradient against ``gradient``, which says for each place of a
    time what it should be, and +- how much. Refused may it be only where one of the ``terms`` has no number in the dtype."""
    largest = torch.finfo(times.dtype).max
    times = times.clone().requires_grad_(True)
    try:
        value = loss(times)
    except ParameterError:
        # by a factor that sums over samples, and the rounding of the logarithm of the largest number, may explain
        assert max(abs(term) for term in terms) > 1e-3 * largest
        return
    assert value.dtype == times.dtype
    assert value.isfinite()
    assert abs(exact(value.detach()) - expected) <= rtol * abs(expected) + atol, (value, expected)
    value.backward()
    assert times.grad.isfinite().all()
    for place in itertools.product(*map(range, times.shape)):
        wanted, rounding = gradient(place)
        found = exact(times.grad[place])
        assert abs(found - wanted) <= rtol * abs(wanted) + rounding + torch.finfo(times.dtype).tiny, (
            place, found, wanted,
        )  # fmt: skip


def precision(times: torch.Tensor) -> float:
    # exp(x) of a rounded x up to 709 is right to 709 roundings; float32 only rounds the results, and their sum over terms
    return max(1e-12, 4 * torch.finfo(times.dtype).eps)


def softmax_of(times: torch.Tensor, b: int, tau: mpf) -> list[mpf]:
    row = [exact(t) for t in times[b]]
    first = min(row)
    weights = [mpmath.exp(-(t - first) / tau) if t < mpmath.inf else mpf(0) for t in row]
    return [w / sum(weights) for w in weights]


@settings(max_examples=500, deadline=None)
@given(tables(), scales, scales, weights, st.sampled_from(DTYPES))
def test_first_spike_cross_entropy(times, tau0, tau1, alpha, dtype):
    times = times.to(dtype)
    target, batch = labels(times), len(times)
    expected, terms, slopes = mpf(0), [1 / exact(tau0)], {}
    for b, k in enumerate(target.tolist()):
        own = exact(times[b, k])
        if not own < mpmath.inf:
            expected += mpmath.log(times.shape[1])
            continue
        share = softmax_of(times, b, exact(tau0))
        first = min(exact(t) for t in times[b])
        others = sum(mpmath.exp(-(exact(t) - first) / exact(tau0)) for t in times[b] if t < INF)
        cross = (own - first) / exact(tau0) + mpmath.log(others)
        early, steep = mpf(0), mpf(0)
        if alpha > 0:
            early = exact(alpha) * mpmath.expm1(own / exact(tau1))
            steep = exact(alpha) / exact(tau1) * mpmath.exp(own / exact(tau1))
            terms += [steep, mpmath.exp(own / exact(tau1)) / (1 if dtype == torch.float64 else mpf(10) ** 270)]
            terms += [exact(alpha) / exact(tau1)]
        expected += cross + early
        terms += [cross, early]
        for c, p in enumerate(share):
            slopes[b, c] = ((c == k) - p) / exact(tau0) + steep * (c == k)
    compare(
        lambda t: first_spike_cross_entropy(Spikes.from_times(t), target, tau0, tau1, alpha),
        times,
        expected / batch,
        # a softmax and expm1(x) + 1, the derivative of expm1, are right to roundings of 1
        lambda place: (slopes.get(place, mpf(0)) / batch, 1e-13 / exact(tau0) + 1e-15 * exact(alpha) / exact(tau1)),
        terms,
        precision(times),
        1e-13 * (1 + alpha),  # -alpha, of early spikes, may cancel the rest
    )


@settings(max_examples=300, deadline=None)
@given(tables(), scales, st.sampled_from(DTYPES))
def test_probabilities_of_the_first_spike(times, tau0, dtype):
    times = times.to(dtype)
    try:
        found = FirstSpike(tau0=tau0).probabilities(Spikes.from_times(times))
    except ParameterError:
        assert 1 / tau0 > torch.finfo(dtype).max
        return
    for b in range(len(times)):
        silent = not times[b].isfinite().any()
        expected = [0.0] * times.shape[1] if silent else [float(p) for p in softmax_of(times, b, exact(tau0))]
        # rounding of probabilities, which are at most 1
        assert found[b].tolist() == pytest.approx(expected, rel=precision(times), abs=1e-13 + torch.finfo(dtype).tiny)
    first = FirstSpike(tau0=tau0).predict(Spikes.from_times(times))
    assert all(k == -1 if row.isinf().all() else row[k] == row.min() for row, k in zip(times, first, strict=True))


@settings(max_examples=300, deadline=None)
@given(tables(2), scales, st.sampled_from(DTYPES))
def test_spike_time_mse(pairs, tau, dtype):
    times, target = pairs.to(dtype).unbind(2)
    target = target.abs()
    places = [place for place in itertools.product(*map(range, times.shape))
              if times[place] < INF and target[place] < INF]  # fmt: skip
    errors = {place: exact(times[place]) - exact(target[place]) for place in places}
    count, tau_ = max(len(places), 1), exact(tau)
    compare(
        lambda t: spike_time_mse(Spikes.from_times(t), target, tau),
        times.contiguous(),
        sum(((e / tau_) ** 2 for e in errors.values()), mpf(0)) / count,
        lambda place: (2 * errors.get(place, mpf(0)) / tau_**2 / count, 0),
        [mpf(0), *((e / tau_) ** 2 for e in errors.values()), *(2 * e / tau_**2 for e in errors.values())],
        precision(times),
        torch.finfo(dtype).tiny,
    )


def counted(times: torch.Tensor, t_end: float, tau: float) -> tuple[dict, dict]:
    """The smooth count of each neuron, and the derivative of each spike's."""
    counts, slopes = {}, {}
    for place in itertools.product(*map(range, times.shape)):
        t = exact(times[place])
        inside = 0 <= t <= exact(t_end)
        left = (exact(t_end) - t) / exact(tau)
        counts[place[:2]] = counts.get(place[:2], mpf(0)) + (-mpmath.expm1(-left) if inside else 0)
        slopes[place] = -mpmath.exp(-left) / exact(tau) if inside else mpf(0)
    return counts, slopes


counts_options = (tables(2), st.one_of(st.just(40.0), powers(-9.0, 9.0)), scales, st.sampled_from(DTYPES))


@settings(max_examples=300, deadline=None)
@given(*counts_options)
def test_smooth_count_and_its_cross_entropy(times, t_end, tau, dtype):
    times = times.to(dtype)
    counts, slopes = counted(times, t_end, tau)
    for place, expected in counts.items():
        found = smooth_count(Spikes.from_times(times), t_end, tau)[place]
        assert abs(exact(found) - expected) <= precision(times) * abs(expected) + torch.finfo(dtype).tiny
    target, batch, classes = labels(times), len(times), times.shape[1]
    rounding = 8 * torch.finfo(dtype).eps  # of the logits, counts up to 2
    expected, share = mpf(0), {}
    for b, k in enumerate(target.tolist()):
        row = [counts[b, c] for c in range(classes)]
        total = sum(mpmath.exp(x) for x in row)
        expected += mpmath.log(total) - row[k]
        share |= {(b, c): mpmath.exp(row[c]) / total - (c == k) for c in range(classes)}
    compare(
        lambda t: spike_count_cross_entropy(Spikes.from_times(t), target, t_end, tau),
        times,
        expected / batch,
        lambda place: (share[place[:2]] * slopes[place] / batch, rounding / exact(tau)),
        [1 / exact(tau)],
        precision(times),
        rounding,
    )
    objective = SpikeCount(t_end, tau)
    assert objective.probabilities(Spikes.from_times(times)).isfinite().all()
    assert (objective.predict(Spikes.from_times(times)) >= 0).all()


bounds_of_counts = st.tuples(weights, st.one_of(st.just(INF), powers(-9.0, 30.0), st.just(0.0))).filter(
    lambda pair: pair[0] <= pair[1]
)


@settings(max_examples=300, deadline=None)
@given(*counts_options, bounds_of_counts)
def test_spike_count_penalty(times, t_end, tau, dtype, bounds):
    times, (low, high) = times.to(dtype), bounds
    counts, slopes = counted(times, t_end, tau)
    batch, neurons = len(times), times.shape[1]
    average = [sum(counts[b, n] for b in range(batch)) / batch for n in range(neurons)]
    over = [max(a - exact(high), mpf(0)) - max(exact(low) - a, mpf(0)) for a in average]
    # the rounding of a count, 1e-16 of 1 or of the bounds that it is compared with
    coarse = 8 * torch.finfo(dtype).eps * max(1.0, low, high if high < INF else 1.0)
    compare(
        lambda t: spike_count_penalty(Spikes.from_times(t), t_end, tau, low=low, high=high),
        times,
        sum(x * x for x in over) / neurons,
        lambda place: (2 * over[place[1]] / neurons * slopes[place] / batch, 2 * exact(coarse) / exact(tau)),
        [1 / exact(tau), exact(low) ** 2, 2 * max(exact(low), 3) / exact(tau)],
        precision(times),
        2 * exact(coarse) * max(abs(x) + exact(coarse) for x in over),
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3), min_size=1, max_size=3),
    st.floats(-30.0, 38.5), st.sampled_from(DTYPES),
)  # fmt: skip
def test_cross_entropy_of_potentials(rows, size, dtype):
    logits = (10.0**size * torch.tensor(rows, dtype=torch.float64)).clamp(-3.4e38, 3.4e38).to(dtype)
    target = labels(logits)
    values = [[exact(x) for x in row] for row in logits]
    each = [max(row) - row[k] + mpmath.log(sum(mpmath.exp(x - max(row)) for x in row))
            for row, k in zip(values, target.tolist(), strict=True)]  # fmt: skip
    logits.requires_grad_(True)
    try:
        loss = MaxVoltage()(logits, target)
    except ValueError:
        assert max(each) > 0.9 * torch.finfo(dtype).max
        return
    rounding = 16 * torch.finfo(dtype).eps  # of a few sums in the dtype
    expected = sum(each) / len(each)
    assert abs(exact(loss.detach()) - expected) <= rounding * (abs(expected) + 1)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", [FirstSpike(), SpikeCount(), MaxVoltage(), MeanVoltage(), WeightedVoltage()])
@pytest.mark.parametrize(("batch", "classes", "spikes"), [(0, 3, 2), (3, 1, 2), (3, 3, 0), (3, 1, 0), (0, 1, 0)])
def test_nothing_and_one_class(objective, batch, classes, spikes, dtype):
    """No samples: loss 0. One class: no loss but that of the time. No spikes: a guess."""
    torch.manual_seed(0)
    layer = objective.output_layer(4, classes, solver=EventDriven(40.0), dtype=dtype)
    arrivals = Spikes.from_times(torch.rand(batch, 4, spikes, dtype=dtype))
    output, target = layer(arrivals), torch.zeros(batch, dtype=torch.long)
    loss = objective(output, target)
    loss.backward()
    assert loss.isfinite()
    assert layer.weight.grad is None or layer.weight.grad.isfinite().all()
    assert objective.predict(output).shape == (batch,)
    assert objective.probabilities(output).isfinite().all()
    if batch == 0 or (classes == 1 and not isinstance(objective, FirstSpike)):
        assert loss == 0.0
    elif spikes == 0:
        assert float(loss.detach()) == pytest.approx(math.log(classes))  # float32


@pytest.mark.parametrize(
    "solver", [EventDriven(40.0), TimeStepped(40.0, 0.5), TimeStepped(40.0, 0.5, "euler")], ids=repr
)
@pytest.mark.parametrize(("batch", "spikes"), [(0, 2), (3, 0), (0, 0)])
def test_penalties_of_nothing(solver, batch, spikes):
    layer = SpikingLinear(4, 3, solver=solver)
    arrivals = Spikes.from_times(torch.rand(batch, 4, spikes))
    output = layer(arrivals)
    margin = silent_margin(layer, arrivals, output)
    assert margin.tolist() == [[1.0] * 3] * batch  # v_th
    mse = spike_time_mse(output, torch.zeros(batch, 3))
    penalty = spike_count_penalty(output, 40.0, low=1.0)
    (margin.sum() + mse + penalty).backward()
    assert layer.weight.grad is None or layer.weight.grad.isfinite().all()
    assert (mse, penalty) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "objective",
    [
        RateMSE(),
        *(RateCrossEntropy(10.0**k) for k in (-30, 0, 30)),
        *(FirstSpikeStep(10.0**k) for k in (-30, 0, 30)),
        MaxPotential(),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize(
    ("steps", "batch", "classes", "rate"),
    [(7, 4, 3, 0.3), (7, 4, 3, 0.0), (7, 4, 3, 1.0), (1, 4, 1, 0.5), (7, 0, 3, 0.5)],
)
def test_losses_of_rasters(objective, steps, batch, classes, rate, dtype):
    torch.manual_seed(0)
    raster = (torch.rand(steps, batch, classes) < rate).to(dtype).requires_grad_(True)
    loss = objective(raster, torch.arange(batch) % classes)
    loss.backward()
    assert loss.isfinite()
    assert raster.grad.isfinite().all()
    assert objective.predict(raster).shape == (batch,)
    assert batch or loss == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: first_spike_cross_entropy(one(2000.0), LABEL), "tau1=6.4 is too small for a target spike at 2000 ms"),
        (lambda: first_spike_cross_entropy(one(1.0), LABEL, tau0=1e-39), "tau0=1e-39 is too small: 1/tau0"),
        (lambda: first_spike_cross_entropy(Spikes.from_times(torch.tensor([[1e9, 0.0]])), LABEL, tau0=1e-30, alpha=0.0),
         "tau0=1e-30 is too small for a target spike 1e+09 ms after the first"),
        (lambda: spike_time_mse(one(600.0), torch.zeros(1, 1), 1e-30), "tau=1e-30 is too small for a spike 600 ms from"),
        (lambda: smooth_count(one(1.0), 40.0, 1e-39), "tau=1e-39 is too small: 1/tau"),
        (lambda: spike_count_penalty(one(1.0), 40.0, low=1e20), "low=1e+20 is too large"),
        (lambda: spike_count_penalty(one(1.0), 40.0, low=INF), "low and high must satisfy 0 <= low <= high, low finite"),
        (lambda: cross_entropy(torch.tensor([[3e38, -3e38]]), LABEL + 1), "output must be finite, and float32 must hold"),
        (lambda: cross_entropy(torch.tensor([[math.nan, 0.0]]), LABEL), "output must be finite"),
        (lambda: RateCrossEntropy(1e39)(torch.ones(2, 1, 2), LABEL), "gain=1e+39 makes logits as large as 1e+39"),
        (lambda: FirstSpikeStep(1e-38)(torch.ones(20, 1, 2), LABEL), "tau=1e-38 makes logits as large as 2e+39"),
        (lambda: RateMSE()(torch.ones(0, 1, 2), LABEL), "spikes must have at least one step"),
        (lambda: FirstSpike(tau1=0.0), "tau1 must be positive"),
        (lambda: FirstSpike(alpha=-1.0), "alpha must be >= 0"),
        (lambda: SpikeCount(tau=-1.0), "tau must be positive"),
        (lambda: WeightedVoltage(INF), "tau must be positive and finite"),
    ],
)  # fmt: skip
def test_what_has_no_number_is_refused_by_name(call, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value).startswith(message), raised.value


LABEL = torch.tensor([0])


def one(time: float) -> Spikes:
    return Spikes.from_times(torch.tensor([[time]]))
