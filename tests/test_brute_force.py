"""Recurrent layers against ``brute_force.py`` in 1,000 random networks, and promise P7 to the bit: batches and threads."""

from __future__ import annotations

import collections
import random

import pytest
import torch
from brute_force import Network, gradients, has_edge, simulate
from conftest import ALL, diverse, random_layer, smooth

from eventprop import LIF, EventDriven, LearnableLIF, Spikes, SpikingLinear, SpikingRecurrent

NETWORKS = 1_000


def random_case(seed: int) -> tuple[SpikingRecurrent, Spikes]:
    """A layer and three samples: plain neurons, neurons with the same time constants, and neurons with nothing in common;
    currents that fire alone, holds, delays, feedback of both signs, arrivals before 0 and at once, neurons that are twins."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    inputs, neurons, arrivals = rng.randint(2, 4), rng.randint(2, 4), rng.randint(3, 10)
    kind = rng.choice(["LIF", "alike", "diverse", "diverse"])

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, dtype=torch.float64)

    different = neurons if kind == "diverse" else 1
    tau_mem, tau_syn = uniform(5.0, 25.0, different), uniform(3.0, 15.0, different)
    tau_syn = torch.where(torch.rand(different) < 0.2, tau_mem, tau_syn)
    v_th = uniform(0.5, 2.0, 1 if kind == "LIF" else neurons)
    neuron: LIF | LearnableLIF = LIF(float(tau_mem[0]), float(tau_syn[0]), float(v_th[0]))
    delay, refractory = (
        rng.choice([0.0, 0.0, 2.0, rng.uniform(0.1, 10.0)]),
        rng.choice([0.0, 2.0, rng.uniform(0.2, 8.0)]),
    )
    if kind != "LIF":
        neuron = LearnableLIF(neurons, refractory=refractory, learn=ALL, dtype=torch.float64)
        values = (tau_mem.log(), tau_syn.log(), v_th.log(), 0.7 * v_th * torch.randn(neurons))
        for parameter, value in zip(neuron.parameters(), values, strict=True):
            parameter.data.copy_(value)
    solver = EventDriven(rng.uniform(20.0, 40.0))
    layer = SpikingRecurrent(inputs, neurons, neuron=neuron, solver=solver, delay=delay, dtype=torch.float64)
    charge = (v_th * tau_mem / tau_syn)[:, None]  # of an arrival that brings what one spike costs
    layer.weight.data.copy_(charge * (1.7 + 2.0 * torch.randn(neurons, inputs, dtype=torch.float64)))
    # no more excitation than that: without a delay it would not stop
    layer.recurrent_weight.data.copy_(charge * uniform(-1.0, 0.6, neurons, neurons))
    if rng.random() < 0.06:  # two neurons that spike at once
        for parameter in layer.parameters():
            parameter.data[1] = parameter.data[0]
    time = uniform(-8.0, solver.t_end, 3, arrivals)
    if rng.random() < 0.3:
        time = (time / 4.0).round() * 4.0  # many at once, and as currents begin
    time, source = time.sort(1).values, torch.randint(inputs, (3, arrivals))
    time[1, -1], source[1, -1] = torch.inf, -1
    return layer, Spikes(time, source, inputs)


def described(layer: SpikingRecurrent, spikes: Spikes) -> tuple[Network, list[torch.Tensor]]:
    """What the oracle solves, and its leaves: the times that come in and the parameters of the layer."""
    parameters = {name: x.detach().clone().requires_grad_() for name, x in layer.named_parameters()}
    time = spikes.time.clone().requires_grad_()
    neuron, refractory = layer.neuron, 0.0
    if isinstance(neuron, LearnableLIF):
        columns = [parameters[f"neuron.log_{name}"].exp() for name in ALL[:3]] + [parameters["neuron.bias"]]
        refractory = neuron.refractory
    else:
        columns = list(
            time.new_tensor([neuron.tau_mem, neuron.tau_syn, neuron.v_th, 0.0]).repeat(layer.out_features, 1).t()
        )
    network = Network(
        time[0], spikes.index[0], parameters["weight"], parameters["recurrent_weight"], *columns, refractory, layer.delay,
        layer.solver.t_end,
    )  # fmt: skip
    return network, [time, *parameters.values()]


def compare(layer: SpikingRecurrent, spikes: Spikes) -> tuple[int, str]:
    """How many spikes a network has, and what of them was compared."""
    network, leaves = described(layer, spikes)
    times, index, doubt = simulate(network)
    if doubt:
        return len(times), "nothing"
    time = spikes.time.clone().requires_grad_()
    output = layer(Spikes(time, spikes.index, spikes.num_neurons))
    order = torch.argsort(output.index[0], stable=True)  # neuron by neuron, as spikes at once may come in any order
    mine, found = output.time[0][order], torch.argsort(index, stable=True)
    assert torch.equal(output.index[0][order], index[found])
    if len(times) == 0:
        return 0, "silence"
    grad = torch.randn(len(times), dtype=torch.float64)
    expected, amplification = gradients(times, index, network, grad[torch.argsort(found)], leaves)
    # V is rounded to 1e-14 of the threshold or two: seen are 1e-14 of the amplification, and 3e-12
    torch.testing.assert_close(mine.detach(), times[found], rtol=0, atol=min(1e-13 * amplification, 1e-10))
    if has_edge(times, index, network):
        return len(times), "times"
    for got, right in zip(torch.autograd.grad(mine @ grad, [time, *layer.parameters()]), expected, strict=True):
        assert (got - right).norm() <= 1e-9 * right.norm()  # seen: 3e-11, where a spike nearly grazes, else 1e-12
    return len(times), "times and gradients"


def test_a_thousand_random_networks():
    """Spikes, their times, and gradients by the times that come in and all parameters. Left out is only, and counted, what
    rounding decides: the gradients where something arrives as a neuron spikes or is released (twins without a delay, or with
    the delay that is the refractory period), and networks with a peak within 1e-9 of the threshold."""
    outcomes, spikes = collections.Counter(), 0
    for seed in range(NETWORKS):
        layer, batch = random_case(seed)
        try:
            emitted, compared = compare(layer, Spikes(batch.time[:1], batch.index[:1], batch.num_neurons))
        except AssertionError as error:
            raise AssertionError(f"network {seed}") from error
        outcomes[compared] += 1
        spikes += emitted
    assert outcomes["times and gradients"] >= 0.92 * NETWORKS, outcomes
    assert outcomes["times"] <= 0.04 * NETWORKS, outcomes
    assert outcomes["nothing"] <= 0.005 * NETWORKS, outcomes
    assert spikes >= 10 * NETWORKS


def solved(layer: SpikingLinear, spikes: Spikes) -> list[torch.Tensor]:
    """Spikes with their slopes, and gradients by the times that come in and all parameters."""
    time = spikes.time.clone().requires_grad_()
    output = layer(Spikes(time, spikes.index, spikes.num_neurons))
    found = torch.autograd.grad(smooth(output), [time, *layer.parameters()])
    return [output.time.detach(), output.index, output.slope.detach(), *found]


def assert_threads_change_nothing(layer: SpikingLinear, batch: Spikes) -> None:
    saved, expected = torch.get_num_threads(), solved(layer, batch)
    try:
        torch.set_num_threads(2)
        assert all(map(torch.equal, expected, solved(layer, batch)))
    finally:
        torch.set_num_threads(saved)


def assert_batch_gives_what_samples_give(layer: SpikingLinear, batch: Spikes) -> None:
    """To the bit, but for the gradients by parameters, which are sums over samples."""
    together, sums = solved(layer, batch), [torch.zeros_like(parameter) for parameter in layer.parameters()]
    for b in range(batch.batch_size):
        arrivals = int(batch.time[b].isfinite().sum())  # without padding
        alone = solved(
            layer, Spikes(batch.time[b : b + 1, :arrivals], batch.index[b : b + 1, :arrivals], batch.num_neurons)
        )
        emitted = alone[0].shape[1]
        assert (together[0][b, emitted:] == torch.inf).all()
        for whole, one in zip(together[:3], alone[:3], strict=True):
            assert torch.equal(whole[b, :emitted], one[0])
        assert torch.equal(together[3][b, :arrivals], alone[3][0])
        for total, one in zip(sums, alone[4:], strict=True):
            total += one
    eps = torch.finfo(batch.time.dtype).eps
    for whole, total in zip(together[4:], sums, strict=True):
        assert (whole - total).norm() <= 100 * eps * (1 + total.norm())


def test_bits_of_a_thousand_random_networks():
    for seed in range(NETWORKS):
        layer, batch = random_case(seed)
        assert_batch_gives_what_samples_give(layer, batch)
        if seed % 10 == 0:  # two threads that wait for each other cost 50 times as much on a busy machine
            assert_threads_change_nothing(layer, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["plain", "learnable", "alike"])
@pytest.mark.parametrize("delay", [None, 0.0, 0.7])
def test_bits_of_large_layers(kind, delay, dtype):
    """Batches and layers that are shared among threads, and neurons that do not fill vector registers."""
    torch.manual_seed(0)
    neuron = {
        "plain": LIF(),
        "learnable": diverse(37, refractory=1.0),
        "alike": LearnableLIF(37, bias=0.2, learn=ALL, dtype=torch.float64),
    }[kind]
    options = {} if delay is None else {"delay": delay, "recurrent_std": 0.3}
    layer = random_layer(
        20, 37, EventDriven(40.0), neuron, SpikingLinear if delay is None else SpikingRecurrent, **options
    ).to(dtype)
    time = torch.rand(70, 20, 2, dtype=dtype) * 30.0
    time[torch.rand(70, 20, 2) < 0.3] = torch.inf
    time[5] = torch.inf
    batch = Spikes.from_times(time)
    assert_batch_gives_what_samples_give(layer, batch)
    assert_threads_change_nothing(layer, batch)
