"""P10: what a PyTorch user may do with the layers of this package, one test for each habit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from conftest import ALL, random_network, random_spikes, smooth
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters

import eventprop.solvers.event_driven.operators
import eventprop.solvers.time_stepped.operators  # noqa: F401  (they register themselves)
from eventprop import (  # fmt: skip
    LIF,
    AveragePool2d,
    Delay,
    DelayedSpikingLinear,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingConv2d,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)

EXACT, GRID = EventDriven(40.0), TimeStepped(40.0, 1.0)
F64 = {"dtype": torch.float64}


def network(solver=EXACT, readout: str | None = "mean") -> torch.nn.Sequential:
    torch.manual_seed(0)
    return random_network([6, 5, 3], LIF(), solver, readout)


def layers() -> dict[str, tuple[torch.nn.Module, Spikes]]:
    """Every kind of layer, with spikes for it."""
    torch.manual_seed(0)
    flat, image = random_spikes(3, 6), random_spikes(3, 36, 1).reshape(1, 6, 6)
    learnable = {"learn": ALL, "bias": 0.3, **F64}
    kinds: dict[str, tuple[torch.nn.Module, Spikes]] = {}
    for name, solver in (("exact", EXACT), ("grid", GRID)):
        made = {
            "linear": SpikingLinear(6, 4, solver=solver, **F64),
            "recurrent": SpikingRecurrent(6, 4, solver=solver, delay=5.0, **F64),
            "learnable": SpikingLinear(6, 4, solver=solver, neuron=LearnableLIF(4, **learnable), **F64),
            "synaptic delays": DelayedSpikingLinear(6, 4, solver=solver, **F64),
            "delay": torch.nn.Sequential(SpikingLinear(6, 4, solver=solver, **F64), Delay(4, **F64)),
            **{f"readout {r}": LeakyReadout(6, 4, solver=solver, reduce=r, **F64) for r in ("max", "mean")},
            "readout weighted": LeakyReadout(6, 4, solver=solver, reduce="weighted", tau_weight=10.0, **F64),
            "readout samples": LeakyReadout(6, 4, solver=solver, reduce="samples", times=[5.0, 20.0], **F64),
            "readout tau": LeakyReadout(6, 4, solver=solver, reduce="max", learn_tau=True, **F64),
        }
        for layer in made.values():
            for part in layer.modules():
                if isinstance(part, SpikingLinear):
                    part.reset_parameters(2.0, 4.0)
        kinds |= {f"{kind}, {name}": (layer, flat) for kind, layer in made.items()}
        convolution = SpikingConv2d(1, 2, 3, solver=solver, **F64)
        convolution.reset_parameters(2.0, 4.0)
        kinds[f"convolution, {name}"] = (torch.nn.Sequential(convolution, AveragePool2d(2)), image)
    return kinds


KINDS = list(layers())


def loss_of(out: Spikes | torch.Tensor) -> torch.Tensor:
    return smooth(out) if isinstance(out, Spikes) else out.sin().sum()


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_their_gradients_are_contiguous(kind):
    layer, spikes = layers()[kind]
    loss_of(layer(spikes)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.grad is not None, name
        assert parameter.grad.is_contiguous(), name
        assert parameter.grad.view(-1).isfinite().all(), name


def test_lbfgs():
    net, spikes, target = network(), random_spikes(4, 6), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(spikes), target)
        loss.backward()
        return loss.detach()

    before = float(closure())
    for _ in range(3):
        optimizer.step(closure)
    assert float(closure()) < before


def test_parameters_to_vector_and_back():
    net, other = network(), network()
    vector_to_parameters(2.0 * parameters_to_vector(net.parameters()), other.parameters())
    assert all(torch.equal(2.0 * a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", [prune.l1_unstructured, prune.random_unstructured])
def test_pruning(method):
    net, spikes = network(), random_spikes(4, 6)
    method(net[0], "weight", amount=0.5)
    loss_of(net(spikes)).backward()
    assert int((net[0].weight == 0).sum()) == net[0].weight.numel() // 2
    assert not net[0].weight_orig.grad[net[0].weight_mask == 0].any()


def test_parametrizations_follow_their_original():
    """A weight that is computed from another one is never taken from before an optimizer's step."""
    net, spikes = network(), random_spikes(4, 6)
    parametrizations.weight_norm(net[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = net(spikes)
    loss_of(first).backward()
    optimizer.step()
    plain = network()
    plain[0].weight.data.copy_(net[0].weight)
    plain[1].load_state_dict(net[1].state_dict())
    assert torch.equal(net(spikes), plain(spikes))
    assert not torch.equal(net(spikes), first)


def test_edits_of_data_are_seen():
    net, spikes = network(readout=None), random_spikes(4, 6)
    before = net(spikes)
    net[0].weight.data.mul_(1.5)
    fresh = network(readout=None)
    fresh[0].weight = torch.nn.Parameter(1.5 * fresh[0].weight.detach())
    assert torch.equal(net(spikes).time, fresh(spikes).time)
    assert not torch.equal(net(spikes).time, before.time)


def test_safetensors(tmp_path):
    net, other = network(), network()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


# ---- operators and torch.compile -------------------------------------------------------------------------------------

FLAT = random_spikes(3, 6)
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_opcheck(backend):
    """Of the operators that the layers call; ``test_autograd_registration`` and AOT look at them without gradients."""
    ops, weight = torch.ops.eventprop, network()[0].weight.detach()
    received, neuron = (FLAT.time, FLAT.index), ([20.0, 5.0, 1.0], 40.0, backend)
    grid = ([20.0, 5.0, 1.0, 40.0, 1.0], "exponential", backend)
    tape = ops.spikes(*received, weight, *neuron)
    steps, drive = ops.grid_drive(*received, weight, *grid)
    on_grid = ops.grid_spikes(drive, steps, *grid)
    neurons = torch.tensor([[20.0, 5.0, 1.0, 0.1, 1.0]] * 5, dtype=torch.float64)
    empty = weight.new_zeros(5, 0)
    several = ops.recurrent_spikes(*received, weight, empty, neurons, 0.0, 40.0, True)
    delays, back = weight.abs(), 0.1 * torch.ones(5, 5, dtype=torch.float64)
    on_steps, steps_of = (*received, weight, delays, back, neurons), (1.0, 40.0, 1.0, "exponential")
    again = ops.grid_recurrent_spikes(*on_steps, *steps_of, True, backend)
    delayed = ops.delayed_spikes(*received, weight, delays, neurons, 40.0, True)
    window = [1, 3, 2, 2, 2, 1, 1, 0, 0]
    patches = ops.unfold(*received, window, backend)
    state, stop = torch.rand(2, 3, 5, dtype=torch.float64), torch.tensor([20.0, 30.0, 40.0], dtype=torch.float64)
    *part, end = ops.spikes_between(*received, weight, state, stop, neuron[0])
    best = torch.rand(3, 5, dtype=torch.float64)
    own, emitters, delivered = FLAT.time[:, :2], FLAT.index[:, :2] % 5, torch.tensor([0, 1, 2])
    span = (FLAT.time[:, 0].contiguous(), stop, torch.rand(6, 3, 5, dtype=torch.float64), own, emitters, delivered)
    layer = (*received, weight, weight[:, :5].contiguous(), neurons, *span)
    recurrent = ops.recurrent_between(*layer, 1.0, True)
    back = (torch.ones_like(recurrent[0]), torch.ones_like(recurrent[5]), 1.0, True)
    inside = ops.spikes(patches[0], patches[1], weight[:, :4].contiguous(), *neuron)
    cases = [
        (ops.spikes, (*received, weight, *neuron)),
        (ops.spikes_adjoint, (*received, weight, *tape, torch.ones_like(tape[0]), 1.0, True, True, *neuron)),
        (ops.spikes_adjoint, (*received, weight, *tape, torch.ones_like(tape[0]), 1.0, False, True, *neuron)),
        (ops.maximum, (*received, weight, *neuron)),
        (ops.maximum_by_tau, (*received, weight, torch.tensor([20.0, 5.0]), 40.0, backend)),
        (ops.average, (*received, FLAT.time.new_zeros(3, 6), *neuron)),
        (ops.average_adjoint, (*received, FLAT.time.new_ones(3, 6), *neuron)),
        (ops.recurrent_spikes, (*received, weight, empty, neurons, 0.0, 40.0, True)),
        (
            ops.recurrent_adjoint,
            (*received, weight, empty, neurons, *several, torch.ones_like(several[0]), 0.0, 40.0, True),
        ),
        (ops.delayed_spikes, (*received, weight, delays, neurons, 40.0, True)),
        (
            ops.delayed_adjoint,
            (*received, weight, delays, neurons, *delayed, torch.ones_like(delayed[0]), 40.0, True),
        ),
        (ops.spikes_between, (*received, weight, state, stop, neuron[0])),
        (
            ops.spikes_between_adjoint,
            (*received, weight, *part, torch.ones_like(part[0]), stop, end, 1.0, True, True, neuron[0]),
        ),
        (ops.maximum_between, (*received, weight, best, state, stop, neuron[0], 40.0)),
        (ops.recurrent_between, (*layer, 1.0, True)),
        (ops.recurrent_between_adjoint, (*layer, *recurrent[:6], *back)),
        (ops.unfold, (*received, window, backend)),
        (ops.fold, (inside[0], inside[1], inside[2], 2, backend)),
        (ops.put_back, (torch.ones_like(patches[0]), patches[2], 3, FLAT.time.shape[1], backend)),
        (ops.grid_effects, (*received, 6, *grid)),
        (ops.grid_effects_adjoint, (*received, steps, drive.new_ones(2, len(steps), 3, 6), *grid)),
        (ops.grid_drive, (*received, weight, *grid)),
        (ops.grid_drive_adjoint, (*received, weight, steps, torch.ones_like(drive), True, True, *grid)),
        (ops.grid_spikes, (drive, steps, *grid)),
        (ops.grid_adjoint, (steps, *on_grid, torch.ones_like(on_grid[0]), 5, *grid)),
        (ops.grid_recurrent_spikes, (*on_steps, *steps_of, True, backend)),
        (
            ops.grid_recurrent_adjoint,
            (*on_steps, *again, torch.ones_like(again[0]), *steps_of, "raw", 1e-3, True, backend),
        ),
        (
            ops.grid_recurrent_adjoint,
            (*on_steps, *again, torch.ones_like(again[0]), *steps_of, "raw", 1e-3, False, backend),
        ),
    ]
    for op, arguments in cases:
        torch.library.opcheck(op.default, arguments, test_utils=CHECKS)
    defined = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("eventprop::")}
    assert defined == {op.default.name().split("::")[1] for op, _ in cases}


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["parameters", "times"])
def test_second_derivatives_are_refused_by_name(kind, what):
    """Also where the loss is linear in what comes out, and its gradient a constant for autograd."""
    layer, spikes = layers()[kind]
    spikes.time.requires_grad_(what == "times")
    out = layer(spikes)
    value = out.time[out.index >= 0].sum() if isinstance(out, Spikes) else out.sum()
    inputs = [spikes.time] if what == "times" else list(layer.parameters())
    grads = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    penalty = sum((g**2).sum() for g in grads if g is not None)
    if what == "parameters" and kind.split(",")[0] in ("readout mean", "readout weighted", "readout samples"):
        assert not penalty.requires_grad  # linear in the weights: the gradient is a constant, and 0 is right
        return
    with pytest.raises(RuntimeError, match="eventprop's gradients cannot be differentiated again"):
        (value + penalty).backward()


def test_hessian_is_refused_by_name():
    net, spikes = network(readout=None), random_spikes(2, 6)

    def value(weight: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(net, {"1.weight": weight}, (spikes,))
        return out.time[out.index >= 0].sum()

    for hessian in (torch.autograd.functional.hessian, lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x)):
        with pytest.raises(RuntimeError, match="eventprop's gradients cannot be differentiated again"):
            hessian(value, net[1].weight.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_equals_autograd(kind):
    layer, spikes = layers()[kind]
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def value(parameters: dict, time: torch.Tensor) -> torch.Tensor:
        train = Spikes._trusted(time, spikes.index, spikes._shape)
        return loss_of(torch.func.functional_call(layer, parameters, (train,)))

    time = spikes.time.clone().requires_grad_(True)
    expected = torch.autograd.grad(
        loss_of(layer(Spikes._trusted(time, spikes.index, spikes._shape))), [*layer.parameters(), time]
    )
    by_parameters, by_time = torch.func.grad(value, argnums=(0, 1))(parameters, spikes.time)
    pulled = torch.func.vjp(value, parameters, spikes.time)[1](spikes.time.new_ones(()))
    for found in ([*by_parameters.values(), by_time], [*pulled[0].values(), pulled[1]]):
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x, y)


def test_jacrev_and_batched_gradients():
    """Row by row what a backward pass gives for each first spike time."""
    net, spikes = network(readout=None), random_spikes(2, 6)
    weight = net[1].weight.detach()

    def first(weight: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(net, {"1.weight": weight}, (spikes,))
        return out.first_spike_time()

    jacobian = torch.func.jacrev(first)(weight)
    leaf = weight.clone().requires_grad_(True)
    times = first(leaf)
    assert times.isfinite().all()
    rows = [torch.autograd.grad(t, leaf, retain_graph=True)[0] for t in times.flatten()]
    assert torch.equal(jacobian.flatten(0, 1), torch.stack(rows))
    directions = torch.eye(times.numel(), dtype=torch.float64).reshape(-1, *times.shape)
    (batched,) = torch.autograd.grad(times, leaf, directions, is_grads_batched=True)
    assert torch.equal(batched, torch.stack(rows))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch's own first forward-mode call
def test_forward_mode_is_refused_by_name():
    net, spikes = network(), random_spikes(2, 6)
    weight = net[0].weight.detach()

    def value(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, {"0.weight": weight}, (spikes,)).sum()

    for forward in (lambda: torch.func.jvp(value, (weight,), (weight,)), lambda: torch.func.jacfwd(value)(weight)):
        with pytest.raises(NotImplementedError, match="eventprop has no forward-mode derivatives"):
            forward()


def test_vmap_over_samples_gives_gradients_of_each_sample():
    net, spikes, target = network(), random_spikes(4, 6), torch.tensor([0, 1, 2, 0])
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(parameters: dict, sample: Spikes, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(net, parameters, (sample[None],)), label[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, spikes, target)
    for b in range(4):
        net.zero_grad()
        F.cross_entropy(net(spikes[b : b + 1]), target[b : b + 1]).backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(found[name][b], parameter.grad, rtol=1e-12, atol=1e-12)  # sums in another order


@pytest.mark.parametrize("solver", [EXACT, GRID], ids=["exact", "grid"])
def test_vmap_over_an_ensemble_of_weights(solver):
    """Members emit different numbers of spikes: rows are padded to the longest."""
    members = [network(solver, None) for _ in range(3)]
    for k, member in enumerate(members):
        for layer in member:
            layer.weight.data.mul_(0.5 + 0.5 * k)
    parameters, buffers = torch.func.stack_module_state(members)
    spikes = random_spikes(2, 6)

    def call(parameters: dict, buffers: dict) -> Spikes:
        return torch.func.functional_call(members[0], (parameters, buffers), (spikes,))

    together = torch.func.vmap(call)(parameters, buffers)
    assert len({int(member(spikes).count().sum()) for member in members}) == 3
    for k, member in enumerate(members):
        alone = member(spikes)
        columns = alone.time.shape[1]
        torch.testing.assert_close(together.time[k, :, :columns], alone.time, rtol=1e-12, atol=1e-12)
        assert torch.equal(together.index[k, :, :columns], alone.index)
        assert (together.index[k, :, columns:] == -1).all()


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_compile_equals_eager(kind):
    """In one graph, for batches of several sizes, with gradients."""
    layer, _ = layers()[kind]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 5):
        spikes = random_spikes(batch, 36, 1).reshape(1, 6, 6) if "convolution" in kind else random_spikes(batch, 6)
        results = []
        for module in (layer, compiled):
            layer.zero_grad()
            time = spikes.time.clone().requires_grad_(True)
            out = module(Spikes._trusted(time, spikes.index, spikes._shape))
            loss = loss_of(out)
            loss.backward()
            results.append([loss.detach(), time.grad, *(p.grad.clone() for p in layer.parameters())])
        for eager, found in zip(*results, strict=True):
            torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)  # sums in another order


def test_compile_at_first_use():
    """In a process that has compiled no kernel yet, with torch's own compiler, for several sizes of batches."""
    script = """
import torch
from eventprop import EventDriven, LeakyReadout, Spikes, SpikingLinear
torch.manual_seed(0)
solver = EventDriven(40.0)
network = torch.nn.Sequential(SpikingLinear(6, 5, solver=solver), LeakyReadout(5, 3, solver=solver))
compiled = torch.compile(network, fullgraph=True)
for batch in (2, 3, 4):
    spikes = Spikes.from_times(20 * torch.rand(batch, 6, 3))
    out = compiled(spikes)
    out.square().sum().backward()
    found = network[0].weight.grad.clone()
    network.zero_grad()
    expected = network(spikes)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, network[0].weight.grad)
    network.zero_grad()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_export():
    net, spikes = network(), random_spikes(3, 6)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (spikes,), dynamic_shapes=([{0: batch}, {0: batch}],))
    more = random_spikes(5, 6)
    torch.testing.assert_close(program.module()(more), net(more), rtol=1e-12, atol=1e-12)
