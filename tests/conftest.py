"""Shared problems: networks and spike trains with several spikes per neuron."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from eventprop import LIF, GradientReport, LeakyReadout, LearnableLIF, Spikes, SpikingLinear, check_gradients
from eventprop.solvers.solver import Solver

torch.set_num_threads(1)  # the problems are tiny: a second thread would only wait

EXACT = 1e-7  # promise P3: relative, in norm
ALL = ("tau_mem", "tau_syn", "v_th", "bias")  # parameters of LearnableLIF
TAU_RATIOS = {"4": (20.0, 5.0), "2": (20.0, 10.0), "1": (10.0, 10.0), "0.6": (6.0, 10.0)}


@pytest.fixture(params=TAU_RATIOS.values(), ids=[f"tau_mem/tau_syn={name}" for name in TAU_RATIOS])
def neuron(request) -> LIF:
    """Neurons of every ratio of the time constants that has its own closed form, and one that has none."""
    tau_mem, tau_syn = request.param
    return LIF(tau_mem=tau_mem, tau_syn=tau_syn)


def random_spikes(batch: int, neurons: int, per_neuron: int = 2, window: float = 20.0, dtype=torch.float64) -> Spikes:
    return Spikes.from_times(torch.rand(batch, neurons, per_neuron, dtype=dtype) * window)


def random_network(sizes: list[int], neuron: LIF, solver: Solver, readout: str | None = None) -> torch.nn.Sequential:
    """Layers of ``SpikingLinear`` that emit several spikes per neuron; the last is a ``LeakyReadout`` if ``readout`` names
    a reduction."""
    options = {"neuron": neuron, "solver": solver, "dtype": torch.float64}
    layers = [SpikingLinear(m, n, **options) for m, n in itertools.pairwise(sizes)]
    if readout is not None:
        layers[-1] = LeakyReadout(sizes[-2], sizes[-1], reduce=readout, **options)
    # one spike of every input brings the charge of 3 +- 2 output spikes
    charge = neuron.v_th * neuron.tau_mem / neuron.tau_syn / neuron.minimum_weight
    for layer in layers:
        layer.reset_parameters(mean=3.0 * charge, std=2.0 * charge)
    return torch.nn.Sequential(*layers)


def random_layer(
    inputs: int, neurons: int, solver: Solver, neuron=None, kind=SpikingLinear, **options
) -> SpikingLinear:
    """A layer of any ``kind`` with the weights of ``random_network`` for plain neurons."""
    layer = kind(inputs, neurons, neuron=neuron, solver=solver, dtype=torch.float64, **options)
    layer.weight.data.copy_(random_network([inputs, neurons], LIF(), solver)[0].weight)
    return layer


def convergence_network(sizes: list[int], solver: Solver, readout: str) -> torch.nn.Sequential:
    """The same network each time, whose neurons spike a few times."""
    torch.manual_seed(0)
    network = random_network(sizes, LIF(), solver, readout)
    for layer in network:
        layer.reset_parameters(2.0, 2.0)
    return network


def diverse(n: int, bias: bool = True, refractory: float = 0.0, learn=ALL) -> LearnableLIF:
    """Neurons of all ratios of the time constants, equal ones included, with currents of both signs; one fires without
    input."""
    neuron = LearnableLIF(n, learn=learn, refractory=refractory, dtype=torch.float64)
    ratios = [(20.0, 5.0), (10.0, 10.0), (6.0, 10.0), (20.0, 10.0)]
    for k in range(n):
        tau_mem, tau_syn = ratios[k % len(ratios)]
        neuron.log_tau_mem.data[k], neuron.log_tau_syn.data[k] = np.log(tau_mem), np.log(tau_syn)
        neuron.log_v_th.data[k] = 0.1 * (k % 3)
        neuron.bias.data[k] = [0.3, -0.4, 1.6, 0.0][k % 4] if bias else 0.0
    return neuron


def learnable(shared: bool, refractory: float) -> LearnableLIF:
    """Four neurons that learn all parameters: each its own, or all the same."""
    if not shared:
        return diverse(4, refractory=refractory)
    options = {"learn": ALL, "bias": 0.2, "refractory": refractory, "dtype": torch.float64}
    return LearnableLIF(4, LIF(15.0, 6.0), shared=True, **options)


@pytest.fixture(params=["numba", "torch"])
def backend(request) -> str:
    return request.param


def smooth(train: Spikes) -> torch.Tensor:
    """A loss that depends on the time of every spike."""
    fired = torch.isfinite(train.time)
    return torch.where(fired, torch.sin(train.time / 7) * (1 + train.index % 5), 0.0).sum()


def assert_exact(fn: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> GradientReport:
    """The backward pass agrees with central differences. Few entries are left out, since few perturbations make two spikes
    change places, and every input has gradients other than 0."""
    report = check_gradients(fn, inputs)
    compared = torch.cat([kept.flatten() for kept in report.compared])
    assert compared.sum() >= 0.9 * len(compared), report
    assert all(n[kept].norm() > 0 for n, kept in zip(report.numeric, report.compared, strict=True)), report
    assert report.relative_error <= EXACT, report
    return report


def assert_exact_gradients(layer: torch.nn.Module, spikes: Spikes) -> None:
    """Of all parameters and of the times that come in, for a layer whose neurons spike several times."""

    def loss(time, *_):
        return smooth(layer(Spikes._trusted(time, spikes.index, spikes.shape)))

    assert layer(spikes).count().max() > 1
    assert_exact(loss, [spikes.time.clone(), *layer.parameters()])
