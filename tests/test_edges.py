"""Both ends of the exponent: what silences of 1e-12 to 1e9 time constants, weights from 1e-30 to 1e30 and nearly equal time
constants do to every layer and readout, against arithmetic that cannot underflow (``exact``)."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from exact import Neuron, Train
from mpmath import exp, mp, mpf

from eventprop import (
    LIF,
    DelayedSpikingLinear,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingConv2d,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    check_gradients,
    silent_margin,
)
from eventprop.core.neuron import decay
from eventprop.solvers import tape

CASES, PARTS, GRADIENT_CASES, READOUT_CASES = 300, 6, 60, 40
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
RATIOS = [1.0, 1.0 + 2.0**-52, 1.0 - 2.0**-53, 1.0 + 1e-6, 1.0 - 1e-6, 0.5, 2.0, 4.0, 0.25, 1e3, 1e-3]
LAYERS = ["recurrent", "delayed", "convolution", "learnable", "bias", "refractory"]


@dataclass
class Case:
    """One neuron, the times and weights of what it receives, each through a synapse of its own, and the window."""

    neuron: LIF
    time: torch.Tensor
    weight: torch.Tensor
    t_end: float
    rng: random.Random

    @property
    def arrivals(self) -> list[tuple[float, float]]:
        return list(zip(self.time.tolist(), self.weight.tolist(), strict=True))

    @property
    def spikes(self) -> Spikes:
        return Spikes.from_times(self.time[None])

    def exact(self, bias: float = 0.0) -> Neuron:
        return Neuron(self.neuron.tau_mem, self.neuron.tau_syn, self.neuron.v_th, bias)


def draw(seed: int, dtype: torch.dtype, kind: str | None = None) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)  # of the delays of ``DelayedSpikingLinear``

    def log_uniform(low: float, high: float) -> float:
        return 10.0 ** rng.uniform(low, high)

    tau_mem = log_uniform(-1, 2)
    neuron = LIF(tau_mem, tau_mem * rng.choice(RATIOS), rng.choice([1.0, 1.0, log_uniform(-30, 30)]))
    gaps = [tau_mem * rng.choice([log_uniform(-12, 9), log_uniform(-1, 1.5)]) for _ in range(rng.randint(2, 5))]
    time = torch.tensor(gaps, dtype=torch.float64).cumsum(0)
    time -= rng.choice([0.0, gaps[0], rng.choice(time.tolist()[:-1]), time[:-1].mean().item()])  # some before 0
    t_end = max(time[-1].item(), 1e-12 * tau_mem)
    if dtype == torch.float32:
        t_end = torch.tensor(t_end, dtype=dtype).item()
    kind = kind or rng.choice(["some", "some", "grazing", "any"])
    factors = [rng.choice([1, 1, 1, -1]) * log_uniform(-1.0, 1.2) for _ in gaps[1:]]
    if kind == "grazing":
        factors[0] = 1.0 + rng.choice([-1, 1]) * log_uniform(-16, -4)
    weight = torch.tensor([neuron.minimum_weight * factor for factor in factors], dtype=torch.float64)
    if kind == "any":
        weight *= log_uniform(-30, 30) / weight.abs().max()
    return Case(neuron, time[:-1].to(dtype), weight.to(dtype), t_end, rng)


def agrees(found: Spikes, train: Train, dtype: torch.dtype) -> str:
    if train.ambiguous:
        return "ambiguous"
    times = found.to_times(max(1, int(found.count().max())))[0, 0].tolist()[: int(found.count())]
    assert len(times) == len(train.times), (times, [float(t) for t in train.times])
    for t, expected, error in zip(times, train.times, train.errors, strict=True):
        assert abs(t - expected) <= 2 * error + 2 * EPS[dtype] * abs(expected), (t, float(t - expected), float(error))
    return "spikes" if times else "silent"


def check_linear(case: Case, backend: str, train: Train) -> str:
    """Fully connected; where nothing is emitted, ``silent_margin`` tells how far the maximum is from the threshold."""
    dtype, v_th = case.time.dtype, case.neuron.v_th
    layer = linear(case, backend)
    found = layer(case.spikes)
    outcome = agrees(found, train, dtype)
    if outcome == "silent":
        margin, size = silent_margin(layer, case.spikes, found).item(), v_th + case.weight.double().abs().sum().item()
        highest = case.exact().highest(case.arrivals, case.t_end)
        assert abs(margin - (v_th - highest)) <= 64 * EPS[dtype] * size
    return outcome


def linear(case: Case, backend: str, kind=SpikingLinear, **options) -> SpikingLinear:
    options = {"neuron": case.neuron, **options}
    layer = kind(
        len(case.weight), 1, solver=EventDriven(case.t_end, backend=backend), dtype=case.weight.dtype, **options
    )
    layer.weight.data.copy_(case.weight[None])
    return layer


def check_layer(case: Case, name: str) -> str:
    """A layer of another kind, whose kernel is another one."""
    dtype, rng, unit = case.time.dtype, case.rng, case.neuron.tau_mem
    if name == "delayed":
        layer = linear(case, "auto", DelayedSpikingLinear, mean_delay=unit)
        delayed = [(t + d, w) for (t, w), d in zip(case.arrivals, layer.delay[0].tolist(), strict=True)]
        return agrees(layer(case.spikes), case.exact().spikes(delayed, case.t_end, eps=EPS[dtype]), dtype)
    if name == "convolution":
        inputs = len(case.weight)
        layer = SpikingConv2d(inputs, 1, 1, neuron=case.neuron, solver=EventDriven(case.t_end), dtype=case.weight.dtype)
        layer.weight.data.copy_(case.weight.reshape(1, inputs, 1, 1))
        found = layer(case.spikes.reshape(inputs, 1, 1))
        return agrees(found, case.exact().spikes(case.arrivals, case.t_end, eps=EPS[dtype]), dtype)
    if name == "recurrent":
        layer = linear(case, "auto", SpikingRecurrent, delay=unit * 10.0 ** rng.uniform(-3, 3))
        again = -case.neuron.minimum_weight * rng.uniform(0.0, 0.5)
        layer.recurrent_weight.data.fill_(again)
        options = {"delay": layer.delay, "again": layer.recurrent_weight.item()}
        return agrees(
            layer(case.spikes), case.exact().spikes(case.arrivals, case.t_end, eps=EPS[dtype], **options), dtype
        )
    v_th = case.neuron.v_th
    bias = {"bias": v_th * rng.choice([1.0, -1.0, 0.5, 1.0 - 1e-9, 1.2])}.get(name, 0.0)
    refractory = {"refractory": unit * 10.0 ** rng.uniform(-3, 3)}.get(name, 0.0)
    neuron = LearnableLIF(1, case.neuron, bias=bias, refractory=refractory, dtype=dtype)
    layer = linear(case, "auto", neuron=neuron)
    tau_mem, tau_syn, v_th, bias, refractory = neuron.table()[0].tolist()  # the logarithms have rounded them
    train = Neuron(tau_mem, tau_syn, v_th, bias).spikes(
        case.arrivals, case.t_end, refractory=refractory, eps=EPS[dtype]
    )
    if train.busy:
        return "busy"
    return agrees(layer(case.spikes), train, dtype)


def readout(
    case: Case, backend: str, reduce: str, tau_weight: float, at: float, learn_tau: bool = False
) -> LeakyReadout:  # fmt: skip
    options = {"weighted": {"tau_weight": tau_weight}, "samples": {"times": [at]}}.get(reduce, {})
    module = LeakyReadout(
        len(case.weight), 1, neuron=case.neuron, solver=EventDriven(case.t_end, backend=backend),
        dtype=case.weight.dtype, reduce=reduce, learn_tau=learn_tau, **options,
    )  # fmt: skip
    module.weight.data.copy_(case.weight[None])
    return module


def check_readouts(case: Case) -> None:
    """Every reduction against its closed form, to rounding: of the potentials, and of exp(-x) in proportion to 1 + x."""
    dtype, rng = case.time.dtype, case.rng
    tau_weight, at = case.neuron.tau_mem * 10.0 ** rng.uniform(-3, 3), case.t_end * rng.random()
    if dtype == torch.float32:
        at = torch.tensor(at, dtype=dtype).item()
    values, size = (
        [*case.time.tolist(), *case.weight.tolist(), case.neuron.tau_mem, case.neuron.tau_syn],
        case.weight.double(),
    )
    for reduce in ("max", "mean", "weighted", "samples"):
        expected = readout_value(values, case, reduce, tau_weight, at)
        for backend in ("numba", "torch"):
            for learn_tau in (False, True):
                if learn_tau and reduce == "max" and dtype == torch.float32:
                    continue  # V is read off at a time in single precision
                found = readout(case, backend, reduce, tau_weight, at, learn_tau)(case.spikes).item()
                close = abs(found - expected) <= 64 * EPS[dtype] * size.abs().sum().item()
                assert close, (reduce, learn_tau, backend, found, float(expected))


def test_every_layer_and_readout():
    """And the draws reach everything."""
    seen: Counter = Counter()
    for dtype, seed in itertools.product(EPS, range(CASES)):
        case, name = draw(seed, dtype), LAYERS[seed // PARTS % len(LAYERS)]
        try:
            check_readouts(case)
            train = case.exact().spikes(case.arrivals, case.t_end, eps=EPS[dtype])
            if train.busy:
                seen["busy"] += 1
                continue
            for backend in ("numba", "torch"):
                seen[check_linear(case, backend, train)] += 1
            seen[f"{name} {check_layer(case, name)}"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {case}") from error
    assert min(seen["spikes"], seen["silent"]) > 0.2 * 4 * CASES, seen  # two precisions, two backends
    assert seen["ambiguous"] < 0.25 * 4 * CASES, seen
    assert all(seen[f"{name} spikes"] > 0 and seen[f"{name} silent"] > 0 for name in LAYERS), seen


# ---- gradients -------------------------------------------------------------------------------------------------------


def differences(function: Callable[..., mpf], values: list[float], scales: list[float]) -> list[mpf]:
    """Derivatives by the first of the ``values``, times their ``scales``: central differences, exact with 60 digits."""
    derivatives = []
    for k, scale in enumerate(scales):
        low, high = (list(map(mpf, values)) for _ in range(2))
        low[k], high[k] = low[k] - mpf(10) ** -20 * mpf(scale), high[k] + mpf(10) ** -20 * mpf(scale)
        derivatives.append((function(high) - function(low)) / 2 * mpf(10) ** 20)
    return derivatives


def agree(
    case: Case, value: torch.Tensor, inputs: list[torch.Tensor], scales: list[float], expected: list[mpf]
) -> None:
    """To promise P3, unless the times of spikes and maxima are rounded to more than that of the time constants."""
    found = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(value, inputs)])
    found = (found * found.new_tensor(scales)).tolist()
    rounding = 4 * EPS[torch.float64] * case.t_end / min(case.neuron.tau_mem, case.neuron.tau_syn)
    size, least = max(map(abs, expected)), 1e-290  # what is smaller may vanish
    close = [abs(f - e) <= (1e-7 + rounding) * size + least for f, e in zip(found, expected, strict=True)]
    assert all(close), (case, found, [float(e) for e in expected])


def spike_loss(values: list[mpf], case: Case, refractory: float) -> mpf:
    """Of the times and weights of the arrivals and the parameters of the neuron."""
    inputs = len(case.weight)
    arrivals = list(zip(values[:inputs], values[inputs : 2 * inputs], strict=True))
    train = Neuron(*values[2 * inputs :]).spikes(arrivals, case.t_end, refractory=refractory)
    return sum((k + 1) * t for k, t in enumerate(train.times)) / case.neuron.tau_mem


@pytest.mark.parametrize("kind", ["numba", "torch", "learnable", "bias", "refractory"])
def test_gradients_of_spikes(kind):
    """By the times and weights of the arrivals, also of those before 0, and the parameters of the neuron."""
    compared = 0
    for seed in range(GRADIENT_CASES):
        case = draw(seed, torch.float64, "some")
        unit, v_th, inputs = case.neuron.tau_mem, case.neuron.v_th, len(case.weight)
        bias = v_th * case.rng.choice([-1.0, 0.5, 1.2]) if kind == "bias" else 0.0
        refractory = 0.1 * unit if kind == "refractory" else 0.0
        neuron, learned = case.neuron, []
        constants = [case.neuron.tau_mem, case.neuron.tau_syn, v_th, 0.0]
        if kind not in ("numba", "torch"):
            learn = ["tau_mem", "tau_syn", "v_th", "bias"]
            neuron = LearnableLIF(1, case.neuron, bias=bias, refractory=refractory, learn=learn, dtype=torch.float64)
            learned, constants = list(neuron.parameters()), neuron.table()[0, :4].tolist()
        train = Neuron(*constants).spikes(case.arrivals, case.t_end, refractory=refractory)
        if train.ambiguous or train.busy or not 0 < len(train.times) < 5:
            continue
        layer = linear(case, kind if kind == "torch" else "numba", neuron=neuron)
        time = case.time[None].clone().requires_grad_(True)
        emitted = layer(Spikes(time, torch.arange(inputs)[None], inputs)).time[0]
        loss = (emitted * torch.arange(1, 1 + len(emitted))).sum() / unit
        scales = [unit] * inputs + case.weight.abs().tolist()
        by_parameters = [*constants[:3], v_th] if learned else []  # of which three are learned as logarithms
        values = [*case.time.tolist(), *case.weight.tolist(), *constants]
        expected = differences(
            partial(spike_loss, case=case, refractory=refractory), values, scales + by_parameters
        )  # fmt: skip
        agree(case, loss, [time, layer.weight, *learned], scales + [1.0, 1.0, 1.0, v_th][: len(learned)], expected)
        compared += 1
    assert compared >= 0.1 * GRADIENT_CASES


def readout_value(values: list[mpf], case: Case, reduce: str, tau_weight: float, at: float) -> mpf:
    """Of the times and weights of the arrivals and the time constants."""
    inputs, t_end = len(case.weight), case.t_end
    neuron, arrivals = Neuron(*values[2 * inputs :], 1.0), list(zip(values[:inputs], values[inputs:], strict=False))
    if reduce == "max":
        return neuron.highest(arrivals, t_end)
    if reduce == "samples":
        return neuron.potential(arrivals, mpf(at))
    if reduce == "mean":
        return neuron.integral(arrivals, t_end) / mpf(t_end)
    return neuron.integral(arrivals, t_end, tau_weight) / (tau_weight * (1 - exp(-mpf(t_end) / tau_weight)))


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("reduce", ["max", "mean", "weighted", "samples"])
def test_gradients_of_readouts(reduce, learn_tau):
    """By the times and weights of the arrivals, also of those before 0, and the time constants."""
    for seed in range(READOUT_CASES):
        case = draw(seed, torch.float64, "some")
        inputs, tau_weight, at = len(case.weight), 3.0 * case.neuron.tau_mem, 0.7 * case.t_end
        taus = [case.neuron.tau_mem, case.neuron.tau_syn]
        scales = [case.neuron.tau_mem] * inputs + case.weight.abs().tolist()
        values = [*case.time.tolist(), *case.weight.tolist(), *taus]
        function = partial(readout_value, case=case, reduce=reduce, tau_weight=tau_weight, at=at)
        expected = differences(function, values, scales + (taus if learn_tau else []))
        for backend in ("numba", "torch"):
            module = readout(case, backend, reduce, tau_weight, at, learn_tau)
            time = case.time[None].clone().requires_grad_(True)
            value = module(Spikes(time, torch.arange(inputs)[None], inputs)).sum()
            agree(case, value, [time, *module.parameters()], scales + [1.0, 1.0] * learn_tau, expected)


# ---- single cases ----------------------------------------------------------------------------------------------------


def one(time: float = 0.0, dtype: torch.dtype = torch.float64) -> Spikes:
    return Spikes.from_times(torch.tensor([[time]], dtype=dtype))


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("neuron", "t_end", "spikes", "highest"),
    [(LIF(1.0, 0.5), 1e3, 3, 2.5), (LIF(1.0, 0.5), 1e12, 3, 2.5), (LIF(20.0, 5.0), 14400.0, 1, 1.5749013123685915)],
)
def test_silence_loses_no_spike(neuron, t_end, spikes, highest, backend, dtype):
    """For tau_mem = 2 tau_syn the peak is a quarter of the weight, else w/minimum_weight."""
    solver, weight = EventDriven(t_end, backend=backend), torch.full((1, 1), 10.0, dtype=dtype)
    assert solver.spikes(one(dtype=dtype), weight, neuron).count().item() == spikes
    value = solver.readout(one(dtype=dtype), weight, neuron, "max").item()
    assert value == pytest.approx(highest, rel=1e-6 if dtype == torch.float32 else 1e-13)


def test_gradients_after_a_long_silence():
    """``check_gradients`` agrees that there are spikes; the backward pass is that of a short window."""
    gradients = []
    for t_end in (20.0, 1e6):
        layer = SpikingLinear(1, 1, neuron=LIF(1.0, 0.5), solver=EventDriven(t_end), dtype=torch.float64)
        layer.weight.data.fill_(10.0)
        report = check_gradients(lambda *_, layer=layer: layer(one()).time.sum(), [layer.weight])
        assert report.compared[0].all()
        assert report.relative_error < 1e-7  # promise P3
        gradients.append(report.analytic[0].item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-12)
    assert gradients[0] != 0


@pytest.mark.parametrize("dt", [0.01, 0.1])
def test_silence_on_a_grid(dt):
    layer = SpikingLinear(1, 1, neuron=LIF(1.0, 0.5), solver=TimeStepped(1000.0, dt), dtype=torch.float64)
    layer.weight.data.fill_(10.0)
    exact = EventDriven(1000.0).spikes(one(), layer.weight, layer.neuron)
    # no arrivals in the steps of the spikes: the same closed form
    torch.testing.assert_close(layer(one()).time, exact.time, rtol=0, atol=1e-11)


def test_a_long_step_keeps_the_faster_decay():
    """exp(-dt/tau_syn) after 40 tau_syn, beside a membrane that has hardly moved."""
    a, s, phi = decay(torch.tensor(40.0, dtype=torch.float64), 1000.0, 1.0)
    expected = Neuron(1000.0, 1.0, 1.0).decay(mpf(40))
    assert all(abs(x.item() / e - 1) < 1e-14 for x, e in zip((a, s, phi), expected, strict=True))


@pytest.mark.parametrize("weight", [1e12, 1e30])
@pytest.mark.parametrize("kind", ["numba", "torch", "general"])
def test_an_enormous_drive_is_refused(kind, weight, monkeypatch):
    if kind == "torch":  # the reference takes minutes to emit a million spikes one after the other
        monkeypatch.setattr(tape, "MAX_SPIKES_PER_SAMPLE", 500)
    neuron = LearnableLIF(1, LIF(), dtype=torch.float64) if kind == "general" else LIF()
    solver = EventDriven(1e6, backend="torch" if kind == "torch" else "auto")
    with pytest.raises(ValueError, match=r"weight makes one sample emit more than [\d,]+ spikes"):
        solver.spikes(one(), torch.full((1, 1), weight, dtype=torch.float64), neuron)


@pytest.mark.parametrize("weight", [1e3, 5e5, 1e6])
def test_the_first_spike_of_a_strong_drive_is_exact(weight):
    """P2, where a step that is short against the time constants is not short enough."""
    first = EventDriven(2000.0).spikes(one(), torch.full((1, 1), weight, dtype=torch.float64), LIF()).time[0, 0]
    assert abs(Neuron(20.0, 5.0, 1.0).potential([(0.0, weight)], mpf(first.item())) - 1) <= 1e-12


@pytest.mark.parametrize("ratio", [1e-300, 1e-9, 1e-3, 1.0, 1.0 + 1e-12, 1e3, 1e9, 1e298])
def test_minimum_weight_reaches_the_threshold(ratio):
    neuron = LIF(5.0 * ratio, 5.0, 1.0)
    exact = Neuron(neuron.tau_mem, neuron.tau_syn, 1.0)
    mp.dps = 700  # digits of the ratio
    peak = exact.flow(mpf(0), mpf(1), exact.peak_time(mpf(0), mpf(1)))[0]
    mp.dps = 60
    assert abs(neuron.minimum_weight * peak - 1) < 1e-13 * max(1.0, abs(math.log(ratio)))
