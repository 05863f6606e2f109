"""The neurons of the surrogate baseline: against autograd through a plain loop, and against SpikingJelly."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
import torch

import eventprop
from surrogate_baseline import kernels, loops
from surrogate_baseline.dynamics import Dynamics
from surrogate_baseline.neurons import IF, LIF, Potential
from surrogate_baseline.surrogates import (
    SURROGATES,
    Arctan,
    FastSigmoid,
    Gaussian,
    PiecewiseQuadratic,
    Sigmoid,
    Triangular,
)

VARIANTS = list(itertools.product([None, "leak"], [0.0, -0.2, None], [False, True]))


def make(leak: str | None, v_reset: float | None, detach_reset: bool, surrogate) -> IF:
    options = {"v_reset": v_reset, "detach_reset": detach_reset, "surrogate": surrogate}
    return LIF(2.5, **options) if leak else IF(**options)


def random_input() -> tuple[torch.Tensor, torch.Tensor]:
    """Input with which neurons spike now and then, and the weights of a loss; 20 steps, 4 samples, 30 neurons."""
    torch.manual_seed(0)
    return (2 * torch.randn(20, 4, 30, dtype=torch.float64) + 0.5).requires_grad_(), torch.randn(20, 4, 30).double()


class Step(torch.autograd.Function):
    """A step function with the derivative that was asked for: the textbook way."""

    @staticmethod
    def forward(ctx, x, surrogate):
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.surrogate(*ctx.saved_tensors), None


def plain_loop(neuron: IF, x: torch.Tensor) -> torch.Tensor:
    rest = 0.0 if neuron.v_reset is None else neuron.v_reset
    v, spikes = torch.full_like(x[0], rest), []
    for x_t in x:
        h = v + (x_t - (v - rest)) / neuron.tau if isinstance(neuron, LIF) else v + x_t
        s = Step.apply(h - neuron.v_th, neuron.surrogate)
        reset = s.detach() if neuron.detach_reset else s
        v = h - neuron.v_th * reset if neuron.v_reset is None else h * (1 - reset) + rest * reset
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize(("leak", "v_reset", "detach_reset"), VARIANTS)
@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_neurons_equal_autograd_through_a_loop(leak, v_reset, detach_reset, surrogate):
    neuron = make(leak, v_reset, detach_reset, surrogate())
    x, weight = random_input()
    spikes, expected = neuron(x), plain_loop(neuron, x)
    assert 0.05 < float(expected.detach().mean()) < 0.95
    assert torch.equal(spikes, expected)
    (grad,), (expected_grad,) = (torch.autograd.grad((s * weight).sum(), x) for s in (spikes, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize(("leak", "v_reset", "detach_reset"), VARIANTS)
@pytest.mark.parametrize(
    ("surrogate", "peer"),
    [
        (Arctan(2.0), "ATan"),
        (Sigmoid(4.0), "Sigmoid"),
        (PiecewiseQuadratic(1.5), "PiecewiseQuadratic"),
        (Gaussian(2.0), "Erf"),
        (FastSigmoid(1.0), "SuperSpike"),
    ],
)
@pytest.mark.filterwarnings("default")  # of the peer
def test_neurons_equal_spikingjelly(leak, v_reset, detach_reset, surrogate, peer):
    peers = pytest.importorskip("spikingjelly.activation_based.neuron", reason="install the extra 'peers'")
    functions = pytest.importorskip("spikingjelly.activation_based.surrogate", reason="install the extra 'peers'")
    options = {
        "v_threshold": 1.0, "v_reset": v_reset, "detach_reset": detach_reset, "step_mode": "m",
        "surrogate_function": getattr(functions, peer)(surrogate.slope),
    }  # fmt: skip
    theirs = peers.LIFNode(tau=2.5, **options) if leak else peers.IFNode(**options)
    x, weight = random_input()
    spikes, expected = make(leak, v_reset, detach_reset, surrogate)(x), theirs(x)
    assert torch.equal(spikes, expected)
    (grad,), (expected_grad,) = (torch.autograd.grad((s * weight).sum(), x) for s in (spikes, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-9)  # the promise; seen: rounding


@pytest.mark.parametrize("surrogate", [*(s() for s in SURROGATES.values()), lambda x: x.abs() < 0.5])
@pytest.mark.parametrize(("soft", "detach"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_loops_agree(soft, detach, surrogate):
    torch.manual_seed(1)
    cell = Dynamics(
        keep=0.6, gain=0.4, v_th=0.8, rest=0.0 if soft else -0.3, soft=soft, detach_reset=detach, surrogate=surrogate
    )
    x, grad = torch.randn(2, 15, 3000, dtype=torch.float64) + 0.3
    spikes, h = kernels.fire(x, cell)
    for found, expected in zip((spikes, h), loops.fire(x, cell), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # rounding
    found, expected = (loop.fire_adjoint(grad, h, cell) for loop in (kernels, loops))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # rounding


def test_memory_order_makes_no_difference():
    x = torch.randn(4, 2, 3, 5, 5)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    same = x[0].expand(4, *x[0].shape)
    assert torch.equal(LIF()(last), LIF()(x))
    assert LIF()(last).stride() == last.stride()
    assert torch.equal(LIF()(same), LIF()(same.contiguous()))


def test_inputs_of_low_precision_are_integrated_in_float32():
    """Adding 2^-9 to 1 in bfloat16 would leave 1."""
    x = torch.full((600, 1, 1), 2.0**-9, dtype=torch.bfloat16)
    assert float(Potential(IF())(x)[-1]) == 600 / 512
    spikes = IF()(x)
    assert spikes.dtype == torch.float32
    assert spikes.flatten().nonzero().flatten().tolist() == [511]


@pytest.mark.parametrize(
    ("surrogate", "x", "value"),
    [
        (Arctan(3.0), 0.5, 1.5 / (1 + (torch.pi * 3.0 * 0.25) ** 2)),
        (Sigmoid(3.0), 0.5, 3.0 * 0.8175744761936437 * 0.1824255238063563),  # sigma(1.5) = 0.8175744761936437
        (FastSigmoid(3.0), -0.5, 1 / 6.25),
        (PiecewiseQuadratic(1.5), -0.5, 1.5 * 0.25),
        (Triangular(3.0), 0.5, 1.5),
        (Gaussian(2.0), 0.5, 2.0 / 1.772453850905516 * 0.36787944117144233),  # sqrt(pi), 1/e
    ],
)
def test_surrogates_by_hand(surrogate, x, value):
    assert float(surrogate(torch.tensor(x, dtype=torch.float64))) == pytest.approx(value, rel=1e-12)


def gradient_with(surrogate) -> torch.Tensor:
    x = torch.zeros(2, 1, requires_grad=True)
    return torch.autograd.grad(IF(surrogate=surrogate)(x).sum(), x)[0]


def test_a_surrogate_may_return_a_number_or_a_tensor_of_its_own():
    kept = torch.ones(2, 1)
    assert torch.equal(gradient_with(lambda x: 1.0), gradient_with(lambda x: kept))
    assert torch.equal(kept, torch.ones(2, 1))


@pytest.mark.parametrize("surrogate", ["arctan", Arctan])
def test_surrogates_must_be_functions(surrogate):
    with pytest.raises(TypeError, match=r"surrogate must be a function of a tensor, such as Arctan\(2.0\)"):
        IF(surrogate=surrogate)


@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_surrogates_are_derivatives_of_a_step(surrogate):
    """Each is even, largest at 0, falls to 0, and those of a step from 0 to 1 integrate to 1."""
    x = torch.linspace(-200, 200, 4_000_001, dtype=torch.float64)
    g = surrogate()(x)
    torch.testing.assert_close(g, g.flip(0), rtol=1e-9, atol=1e-12)
    assert g.argmax() == len(x) // 2
    assert (g >= 0).all()
    assert g[0] < 1e-3
    if surrogate.__name__ in ("Arctan", "Sigmoid", "PiecewiseQuadratic", "Gaussian"):
        assert float(torch.trapezoid(g, x)) == pytest.approx(1.0, abs=2e-3)  # the arctan's tails beyond 200


def test_a_function_of_the_user_is_a_surrogate():
    x, weight = random_input()
    function, built_in = LIF(surrogate=lambda x: 1.0 / (1.0 + (torch.pi * x).square())), LIF(surrogate=Arctan(2.0))
    grads = [torch.autograd.grad((neuron(x) * weight).sum(), x)[0] for neuron in (function, built_in)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)  # rounding


def test_nothing_is_left_from_one_batch_to_the_next():
    neuron = LIF(tau=10.0)
    x = torch.full((5, 2, 3), 2.0)  # V = 0.82 after five steps: a spike would come in the second batch
    assert neuron(torch.cat([x, x])).any()
    first, second = (neuron.spikes_and_potential(x) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not list(neuron.buffers())


def test_empty_input():
    assert IF()(torch.zeros(0, 2, 3)).shape == (0, 2, 3)
    assert IF()(torch.zeros(4, 0, 3, requires_grad=True)).sum().backward() is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LIF(tau=1.0), "tau must be > 1 step, got 1.0; without a leak, use IF"),
        (lambda: IF(v_th=0.0), "v_th must be positive"),
        (lambda: IF(v_reset=1.0), "v_reset must be below v_th=1.0, or None for a soft reset; got 1.0"),
        (lambda: Arctan(-1.0), "slope must be positive"),
        (lambda: IF()(torch.full((2, 1), torch.nan)), "a membrane potential that is NaN or infinite"),
        (
            lambda: gradient_with(lambda x: x[:1]),
            r"surrogate must return the shape of its argument \[2, 1\], got \[1, 1\]",
        ),
        (lambda: IF()(torch.zeros(3)), r"input must have shape \[T, B, ...\], got \[3\]"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_potential_is_that_of_neurons_that_do_not_spike():
    x = torch.rand(6, 2, 3, dtype=torch.float64) * 0.3
    neuron = LIF(tau=3.0, v_reset=-0.2)
    torch.testing.assert_close(
        Potential(neuron)(x), neuron.spikes_and_potential(x)[1], rtol=1e-12, atol=1e-12
    )  # rounding
    assert torch.autograd.gradcheck(Potential(neuron), x.requires_grad_())


def test_eventprop_never_imports_the_baseline():
    for path in Path(eventprop.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("surrogate_baseline") for name in names), path
