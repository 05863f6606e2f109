"""Hostile input: random networks of every kind, the promises P4 to P8 on random spike trains, and damaged files."""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import itertools
import math
import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from test_config import composed, parse

from eventprop import LIF, EventDriven, Spikes, SpikingLinear
from eventprop.data import DataError, mnist
from eventprop.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from eventprop.training.config import ConfigError

NETWORKS = 10_000


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def random_case(seed: int) -> tuple[torch.nn.Sequential, torch.Tensor, torch.Tensor]:
    """A network of one to three layers, with times [B, K] and neurons of its input: time constants that are equal, nearly
    equal or far apart, weak and strong weights, no input, arrivals at once, long silences."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tau_mem = log_uniform(rng, 0.1, 100.0)
    ratio = rng.choice([1.0, 1.0 + 1e-9, 1.001, 2.0, log_uniform(rng, 0.02, 50.0), log_uniform(rng, 0.2, 5.0)])
    neuron = LIF(tau_mem, tau_mem * ratio, log_uniform(rng, 0.1, 10.0))
    window = tau_mem * log_uniform(rng, 0.1, 10.0)
    silence = log_uniform(rng, 10.0, 1e5) * max(1.0, ratio) * tau_mem if rng.random() < 0.25 else 0.0
    solver = EventDriven(t_end=window + silence)
    sizes = [rng.randint(1, 5) for _ in range(rng.randint(2, 4))]
    layers = [
        SpikingLinear(m, n, neuron=neuron, solver=solver, dtype=torch.float64) for m, n in itertools.pairwise(sizes)
    ]
    for layer in layers:
        layer.reset_parameters(rng.uniform(-1.0, 4.0), log_uniform(rng, 0.1, 5.0))
    arrivals = rng.choice([0, 1, 2, rng.randint(1, 12)])
    time = (torch.rand(2, arrivals, dtype=torch.float64) * window * rng.uniform(0.1, 1.2)).sort(1).values
    if rng.random() < 0.2:
        time = (time / window * 4).round() * window / 4  # many at once
    time[:, rng.randint(0, arrivals) :] += silence  # before, between or behind the arrivals
    return torch.nn.Sequential(*layers), time, torch.randint(sizes[0], time.shape)


def potential(at, arrivals: Spikes, layer: SpikingLinear, emitted: Spikes) -> torch.Tensor:
    """[B, N, T] V at the times ``at`` [B, T], as a sum over all arrivals and own spikes before: nothing of the solver."""
    tau_mem, tau_syn, v_th = layer.neuron.tau_mem, layer.neuron.tau_syn, layer.neuron.v_th
    since = (at[:, :, None] - arrivals.time[:, None, :]).clamp(min=0.0)  # 0 for those to come: psp(0) = 0
    since = torch.where(torch.isfinite(arrivals.time)[:, None, :], since, 0.0)
    rate = 1 / tau_syn - 1 / tau_mem
    if abs(rate * tau_mem) < 1e-6:
        psp = since / tau_mem * torch.exp(-since / tau_mem)
    else:
        slower, faster = max(tau_mem, tau_syn), min(tau_mem, tau_syn)
        drop = -torch.exp(-since / slower) * torch.expm1(-since * (1 / faster - 1 / slower))
        psp = drop / abs(rate) / tau_mem
    weight = layer.weight.detach().t()[arrivals.index.clamp(min=0)]  # [B, K, N]
    v = torch.einsum("btk,bkn->bnt", psp, weight)
    after = at[:, :, None] - emitted.time[:, None, :]
    reset = torch.where(after > 0, torch.exp(-after.clamp(min=0.0) / tau_mem), 0.0)
    own = torch.nn.functional.one_hot(emitted.index.clamp(min=0), layer.out_features) * (emitted.index >= 0)[..., None]
    return v - v_th * torch.einsum("bts,bsn->bnt", reset, own.double())


def check_case(seed: int) -> tuple[int, str]:
    """Solve a random network forwards and backwards; how many spikes it has, and how its gradient was checked."""
    network, time, index = random_case(seed)
    time.requires_grad_(True)
    direction = torch.randn_like(time.detach())
    values, spikes = Spikes(time, index, network[0].in_features), 0
    unit = network[0].neuron.tau_mem
    rounding = 1e-15 * network[0].solver.t_end / min(unit, network[0].neuron.tau_syn)
    for layer in network:
        emitted = layer(values)
        found, window, v_th = emitted.detach(), layer.solver.t_end, layer.neuron.v_th
        spikes += int(found.count().sum())
        # no crossing is missed: V stays below the threshold wherever one looks, also just before and after the arrivals
        looks = max(10, min(200, 1_000_000 // max(found.time.shape[1], values.time.shape[1], 1)))  # in bounded memory
        at = torch.linspace(0.0, window, looks, dtype=torch.float64).expand(2, -1)
        inside = values.time.detach()[:, :looks].clamp(max=window)
        after = [(inside + x * layer.neuron.tau_mem).clamp(max=window) for x in (1e-3, 0.1, 1.0, 3.0)]
        at = torch.cat([at, inside, *after], dim=1)
        scale = v_th + layer.weight.detach().abs().max() * max(values.time.shape[1], 1)
        excess = potential(at, values.detach(), layer, found).amax(1) - v_th  # [B, T]
        if found.time.shape[1]:  # right at a spike V may be seen before or after its reset
            excess[(at[:, :, None] - found.time[:, None, :]).abs().amin(-1) < 1e-9 * unit] = -v_th
        # rounding of sums of thousands of terms, and of times that are long against the time constants
        assert (excess <= (1e-10 + rounding) * scale).all(), (seed, float(excess.max()))
        values = emitted

    def loss(spikes: Spikes) -> torch.Tensor:
        fired = spikes.index >= 0
        return (torch.where(fired, spikes.time, 0.0) / spikes.time.new_tensor(network[0].neuron.tau_mem)).sin().sum()

    loss(values).backward()
    gradients = [time.grad, *(layer.weight.grad for layer in network)]
    assert all(g is None or torch.isfinite(g).all() for g in gradients), seed
    directions = [
        direction * network[0].neuron.tau_mem,
        *(torch.randn_like(w) * w.detach().std(correction=0) for w in network.parameters()),
    ]
    gradients = [None if g is None else g.detach() for g in gradients]
    exact = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    slopes = sum(float((g * d).abs().sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)

    @torch.no_grad()
    def moved(step: float) -> tuple[float, list[torch.Tensor]]:
        other = copy.deepcopy(network)
        for weight, d in zip(other.parameters(), directions[1:], strict=True):
            weight += step * d
        order = (time + step * directions[0]).sort(1)
        values, structure = Spikes(order.values, index.gather(1, order.indices), network[0].in_features), []
        for layer in other:
            values = layer(values)
            structure.append(values.index)
        return float(loss(values)), structure

    for step in (1e-5, 1e-6, 1e-7, 1e-8):
        (above, events_above), (below, events_below) = moved(step), moved(-step)
        if not _same(events_above, events_below):
            continue
        # central differences: rounding of the loss over the step, and the curvature of steep, near-grazing spikes
        noise = (1e-13 + rounding) * (spikes + 1) + rounding * slopes
        if abs((above - below) / (2 * step) - exact) <= 1e-4 * slopes + noise / step:
            return spikes, "agrees"
    return spikes, "changes" if step == 1e-8 and not _same(events_above, events_below) else "differs"


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_ten_thousand_random_networks():
    """Forwards without a missed spike, backwards without NaN, and within the tolerance of finite differences wherever a step
    does not change which spikes there are, or their order; where it does, that is counted."""
    outcomes, spikes, differ = collections.Counter(), 0, []
    for seed in range(NETWORKS):
        emitted, outcome = check_case(seed)
        outcomes[outcome] += 1
        spikes += emitted
        differ += [seed] if outcome == "differs" else []
    assert not differ, differ
    assert outcomes["changes"] <= 0.01 * NETWORKS, outcomes
    assert spikes > 10 * NETWORKS  # 113 per network


times = st.lists(st.floats(0.0, 39.0, width=32), max_size=12)
problems = st.builds(
    lambda rows, seed, gain: (Spikes.from_times(_padded(rows)), seed, gain),
    st.lists(st.lists(times, min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 2**31), st.floats(0.1, 8.0),
)  # fmt: skip


def _padded(rows: list[list[list[float]]]) -> torch.Tensor:
    """[B, N, R] times, whatever the number of spikes of each neuron."""
    most = max(len(neuron) for row in rows for neuron in row)
    padded = [[neuron + [math.inf] * (most - len(neuron)) for neuron in row] for row in rows]
    return torch.tensor(padded, dtype=torch.float64).reshape(len(rows), 3, most)


def _layer(seed: int, gain: float, neuron: LIF | None = None, t_end: float = 40.0) -> SpikingLinear:
    torch.manual_seed(seed)
    layer = SpikingLinear(3, 4, neuron=neuron, solver=EventDriven(t_end), dtype=torch.float64)
    layer.reset_parameters(gain, gain)
    return layer


@settings(max_examples=200, deadline=None)
@given(problems)
def test_forward_changes_nothing(problem):
    """P4: no parameter, no input, no generator; the same input gives the same output."""
    spikes, seed, gain = problem
    layer = _layer(seed, gain)
    before = [layer.weight.clone(), spikes.time.clone(), spikes.index.clone(), torch.get_rng_state()]
    out, again = layer(spikes), layer(spikes)
    after = [layer.weight, spikes.time, spikes.index, torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(out.time, again.time)
    assert torch.equal(out.index, again.index)


@settings(max_examples=200, deadline=None)
@given(problems)
def test_a_batch_equals_its_samples_alone(problem):
    """P7, bit for bit; and P5: as many spikes."""
    spikes, seed, gain = problem
    layer = _layer(seed, gain)
    out = layer(spikes)
    for b in range(spikes.batch_size):
        alone = layer(spikes.select(torch.tensor([b])))
        n = int(alone.count().sum())
        assert n == int(out.count()[b].sum())
        assert torch.equal(out.time[b, :n], alone.time[0, :n])
        assert torch.equal(out.index[b, :n], alone.index[0, :n])


@settings(max_examples=200, deadline=None)
@given(problems, st.sampled_from([0.125, 0.5, 2.0, 64.0]))
def test_times_have_units(problem, c):
    """P8: all times c times as long, powers of 2 for which scaling is exact in floating point."""
    spikes, seed, gain = problem
    out = _layer(seed, gain)(spikes)
    scaled = _layer(seed, gain, LIF(20.0 * c, 5.0 * c), 40.0 * c)(Spikes(spikes.time * c, spikes.index, 3))
    assert torch.equal(out.index, scaled.index)
    torch.testing.assert_close(scaled.time, out.time * c, rtol=1e-9, atol=0.0)


@settings(max_examples=100, deadline=None)
@given(problems)
def test_a_shift_of_the_input_shifts_the_output(problem):
    """P8: the gradients of one emitted time by all arrivals add up to 1."""
    spikes, seed, gain = problem
    time = spikes.time.clone().requires_grad_(True)
    out = _layer(seed, gain)(Spikes(time, spikes.index, 3))
    if not int(out.count().sum()):
        return
    row, column = (out.index >= 0).nonzero()[-1].tolist()
    out.time[row, column].backward()
    steep = float(1.0 / out.slope.detach()[out.index >= 0].min().clamp(max=1.0))  # of rounding, at grazing spikes
    assert float(time.grad.sum()) == pytest.approx(1.0, abs=1e-9 * steep**2)


@settings(max_examples=60, deadline=None)
@given(problems)
def test_single_precision_stays_close(problem):
    """P6, wherever both find the same spikes: a spike that nearly grazes may come or go with rounding."""
    spikes, seed, gain = problem
    layer = _layer(seed, gain)
    out, single = layer(spikes), layer.float()(spikes.to(torch.float32))
    if torch.equal(out.index, single.index) and (out.slope > 0.01).all():
        torch.testing.assert_close(single.time.double(), out.time, rtol=0.0, atol=1e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 3, "model": {"weight": torch.arange(20.0)}})
    return path, path.read_bytes()


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Truncated, with some bytes changed, with some inserted, or something else altogether."""
    place = st.integers(0, len(content) - 1)

    def changed(changes: dict[int, int]) -> bytes:
        flipped = bytearray(content)
        for at, value in changes.items():
            flipped[at] = value
        return bytes(flipped)

    return st.one_of(
        st.binary(max_size=300),
        place.map(lambda at: content[:at]),
        st.dictionaries(place, st.integers(0, 255), min_size=1, max_size=8).map(changed),
        st.tuples(place, st.binary(min_size=1, max_size=20)).map(lambda x: content[: x[0]] + x[1] + content[x[0] :]),
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_checkpoints_are_refused_or_whole(checkpoint, data):
    path, content = checkpoint
    path.write_bytes(data.draw(damaged(content)))
    try:
        state = load_checkpoint(path)
    except CheckpointError:
        return
    assert state["epoch"] == 3
    assert torch.equal(state["model"]["weight"], torch.arange(20.0))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_data_files_are_refused(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("data")
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        contents = {name: bytes([k]) * 40 for k, name in enumerate(mnist.SIZES)}
        patch.setattr(mnist, "SIZES", {name: len(content) for name, content in contents.items()})
        digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        patch.setattr(mnist, "MNIST_MD5", digests)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        victim = data.draw(st.sampled_from(sorted(contents)))
        mnist._check_file(folder / victim, mnist.SIZES[victim], digests[victim])  # as long as it is whole
        content = data.draw(damaged(contents[victim]))
        assume(content != contents[victim])
        (folder / victim).write_bytes(content)
        with pytest.raises(DataError, match="bytes, expected|is corrupt"):
            mnist.load_mnist(str(root), "full")


KEYS = [
    "train.epochs",
    "neuron.tau_mem",
    "solver.t_end",
    "optimizer.lr",
    "model.hidden",
    "seed",
    "experiment",
    "data.root",
]


@pytest.fixture(scope="module")
def main_job():
    config = composed("+experiment=mnist")
    OmegaConf.set_struct(config, False)
    return config


VALUES = st.one_of(
    st.integers(), st.floats(), st.text(max_size=12), st.booleans(), st.none(), st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*KEYS, "train", "neuron", "model.wieght_std", "x"]), VALUES)
def test_any_value_of_any_key_builds_or_is_named(main_job, key, value):
    config = copy.deepcopy(main_job)
    # OmegaConf itself may refuse it: an interpolation that is none, for example
    said = key
    with contextlib.suppress(OmegaConfBaseException):
        OmegaConf.update(config, key, value, merge=False)
        try:
            parse(config)
        except ConfigError as error:
            said = str(error)
    assert key in said
