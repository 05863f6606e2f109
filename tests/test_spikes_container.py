"""Spike trains have the manners of tensors and containers, and PyTorch's tools take them as such."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, StackDataset, default_collate

from eventprop import (  # fmt: skip
    EventDriven,
    GridSpikes,
    Spikes,
    SpikingLinear,
    TimeStepped,
    binary_latency_encode,
    latency_encode,
    sequence_encode,
)
from surrogate_baseline.solver import RasterSpikes, SurrogateTimeStepped

INF = math.inf
TIMES = torch.tensor([[3.0, INF, 1.0], [INF, INF, 2.0], [4.0, 5.0, 6.0]])


def train(kind: str = "Spikes", slopes: bool = True) -> Spikes:
    """Three samples, of two spikes, one and three."""
    plain = Spikes.from_times(TIMES).reshape(1, 3)
    slope = plain.time / 10 if slopes else None
    plain = Spikes(plain.time, plain.index, 3, slope, plain.shape, height=0.5)
    return plain if kind == "Spikes" else GridSpikes.from_spikes(plain, 1.0, 10.0)


@pytest.fixture(params=["Spikes", "GridSpikes"])
def spikes(request) -> Spikes:
    return train(request.param)


def first_times(spikes: Spikes) -> list:
    return spikes.first_spike_time().tolist()


def test_an_index_chooses_samples_and_leaves_out_padding(spikes):
    assert len(spikes) == 3
    for rows in ([0, 1], slice(2), torch.tensor([0, 1]), torch.tensor([True, True, False]), [True, True, False],
                 np.array([0, 1]), range(2), slice(-3, -1)):  # fmt: skip
        part = spikes[rows]
        assert type(part) is type(spikes)
        assert first_times(part) == TIMES[:2].tolist()
        assert part.time.shape == part.index.shape == part.slope.shape == (2, 2)
        assert part._kind() == spikes._kind()
    assert first_times(spikes[[2, 0]]) == TIMES[[2, 0]].tolist()
    assert len(spikes[[]]) == 0
    assert [len(part) for part in spikes.split(2)] == [2, 1]
    assert first_times(spikes.split([1, 2])[1]) == TIMES[1:].tolist()


def test_an_integer_chooses_one_sample(spikes):
    for sample in (spikes[1], spikes[-2], spikes[np.int64(1)], spikes[torch.tensor(1)]):
        assert sample.time.tolist() == [2.0]
        assert sample.index.tolist() == [2]
        assert sample[None].equal(spikes[1:2])
        assert first_times(sample) == TIMES[1].tolist()
        assert sample.count().tolist() == [0, 0, 1]
        assert sample.to_times(1).shape == (3, 1)
        assert torch.equal(sample.to_raster(1.0, 10.0), spikes[1:2].to_raster(1.0, 10.0)[:, 0])
        assert "batch_size" not in repr(sample)
        with pytest.raises(TypeError, match="this is one sample, which has no batch size"):
            len(sample)
        with pytest.raises(TypeError, match=r"this is one sample: its spikes are sample\.time"):
            sample[0]


def test_iteration_gives_samples(spikes):
    assert [first_times(sample) for sample in spikes] == TIMES.tolist()


@pytest.mark.parametrize("index", [(0, 1), True, None, torch.zeros(2, 2, dtype=torch.long)])
def test_what_cannot_choose_samples_is_refused(spikes, index):
    with pytest.raises(TypeError, match="samples are chosen by an integer, a slice, a list, a mask"):
        spikes[index]
    for outside in (3, -4, [3]):
        with pytest.raises(IndexError):
            spikes[outside]


def test_layers_take_batches(spikes):
    layer = SpikingLinear(3, 2, solver=EventDriven(20.0))
    layer(spikes[0][None])
    with pytest.raises(
        ValueError, match=r"the input must be a batch of spike trains, this is one sample; use sample\[None\]"
    ):
        layer(spikes[0])


def test_gradients_reach_the_times_through_an_index(spikes):
    spikes.requires_grad_()
    spikes[0].time.sum().backward()
    assert spikes.time.grad.tolist() == [[1.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3]


def test_moves_and_copies(spikes):
    assert spikes.double().dtype == spikes.double().slope.dtype == spikes.to(spikes.double()).dtype == torch.float64
    assert spikes.double().float().cpu().equal(spikes)
    assert spikes.to("meta", torch.float64, True).index.device.type == "meta"
    for name in ("time", "index", "slope"):
        assert getattr(spikes.to("cpu"), name) is getattr(spikes, name)
        for twin in (spikes.clone(), spikes.to("cpu", copy=True), spikes.to("cpu", torch.float32, False, True)):
            assert getattr(twin, name).data_ptr() != getattr(spikes, name).data_ptr()
            assert twin.equal(spikes)
    spikes.requires_grad_()
    assert spikes.clone().time.grad_fn is not None
    assert not spikes.detach().time.requires_grad
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        spikes.to(torch.bfloat16)


def test_memory_is_pinned_or_torch_says_why(spikes):
    """As for a tensor."""
    for move in (lambda x: x.pin_memory(), lambda x: x.cuda()):
        try:
            expected = move(torch.zeros(1)).device
        except (RuntimeError, AssertionError) as error:
            with pytest.raises(type(error), match="(?s)" + str(error).splitlines()[0][:20]):
                move(spikes)
        else:
            assert move(spikes).device == expected


def test_equality_is_a_method(spikes):
    twin = spikes[:2]
    padded = spikes._similar(spikes.time[:2], spikes.index[:2].short(), None)
    assert padded.time.shape != twin.time.shape
    assert padded.equal(twin)  # padding, slopes and the kind of integer do not count
    for other in (spikes, twin.double(), spikes[1:], twin.reshape(3), None, twin.time):
        assert not twin.equal(other)
    assert not Spikes.from_times(TIMES).equal(GridSpikes.from_spikes(Spikes.from_times(TIMES), 1.0, 10.0))
    assert len({spikes, twin}) == 2  # by identity, as tensors
    torch.testing.assert_close(pytree.tree_leaves(spikes[[0, 1]]), pytree.tree_leaves(twin))


@pytest.mark.parametrize("slopes", [True, False])
@pytest.mark.parametrize("kind", ["Spikes", "GridSpikes"])
def test_they_are_pytrees(kind, slopes):
    spikes = train(kind, slopes)
    leaves, spec = pytree.tree_flatten({"x": spikes})
    assert [leaf.shape for leaf in leaves] == [(3, 3)] * (3 if slopes else 2)
    again = pytree.tree_unflatten(leaves, spec)["x"]
    assert again.equal(spikes)
    assert vars(again).keys() == vars(spikes).keys()
    assert pytree.tree_structure({"x": train(kind, slopes)}) == spec
    double = pytree.tree_map(lambda x: 2 * x, spikes)
    assert type(double) is type(spikes)
    assert torch.equal(double.time, 2 * spikes.time)
    keys = [pytree.keystr(key) for key, _ in pytree.tree_flatten_with_path({"x": spikes})[0]]
    assert keys == ["['x'].time", "['x'].index", "['x'].slope"][: len(leaves)]
    for placeholder in (None, object(), 3):  # unflattening checks nothing
        assert "Spikes(time=" in repr(pytree.tree_map(lambda _, leaf=placeholder: leaf, spikes))


def test_rasters_are_pytrees_with_their_raster():
    layer = SpikingLinear(3, 4, solver=SurrogateTimeStepped(10.0, 1.0))
    raster = layer(Spikes.from_times(TIMES))
    leaves, spec = pytree.tree_flatten(raster)
    again = pytree.tree_unflatten(leaves, spec)
    assert type(again) is RasterSpikes
    assert any(leaf.requires_grad for leaf in leaves)
    assert again.raster is raster.raster
    assert type(raster[0]) is type(raster[:2]) is type(raster.clone()) is GridSpikes
    assert raster.detach()[[0, 1, 2]].equal(GridSpikes.cat([sample.detach() for sample in raster]))


def test_collating_pads_ragged_rows(spikes):
    """Of single samples, and of batches."""
    for samples in ([spikes[0], spikes[1], spikes[2]], [spikes[:1], spikes[1], spikes[2:]]):
        batch = default_collate([(sample, k) for k, sample in enumerate(samples)])
        assert batch[0].equal(spikes)
        assert torch.equal(batch[0].slope, spikes.slope)
        assert batch[1].tolist() == [0, 1, 2]
    silent = Spikes.from_times(torch.full((2, 3), INF))
    assert default_collate([silent[0], silent[1]]).equal(silent)
    assert default_collate([silent[0], silent]).time.shape == (3, 0)
    with pytest.raises(ValueError, match="parts must be of one shape, height and grid"):
        default_collate([spikes[0], spikes.reshape(3)[0]])
    with pytest.raises(ValueError, match="parts must hold at least one spike train"):
        Spikes.cat([])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_makes_batches(workers):
    for kind in ("Spikes", "GridSpikes"):
        spikes = train(kind)
        loader = DataLoader(StackDataset(spikes, torch.arange(3)), batch_size=2, num_workers=workers)
        (first, _), (last, label) = loader
        assert first.equal(spikes[:2])
        assert last.equal(spikes[2:])
        assert label.tolist() == [2]


def test_they_are_saved_and_loaded(spikes):
    buffer = io.BytesIO()
    torch.save({"spikes": spikes}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["spikes"]
    for other in (loaded, pickle.loads(pickle.dumps(spikes)), copy.copy(spikes), copy.deepcopy(spikes)):
        assert other.equal(spikes)
        assert torch.equal(other.slope, spikes.slope)
        assert vars(other).keys() == vars(spikes).keys()
    assert copy.deepcopy(spikes).time.data_ptr() != spikes.time.data_ptr()
    hidden = spikes.requires_grad_().clone()
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(hidden)


def _counted(times: torch.Tensor) -> tuple[torch.Tensor, ...]:
    spikes = Spikes.from_times(times)
    later = spikes.reordered(spikes.time + 1.0, spikes.index)
    kept = (spikes.index >= 0).to(times)
    raster = spikes.to_raster(1.0, 10.0)
    return spikes.first_spike_time(), spikes.count(), spikes.summed(kept), later.to_times(k=2), raster


def test_they_compile_to_one_graph():
    times = torch.stack([TIMES, TIMES + 1.5], dim=2)
    compiled = torch.compile(_counted, fullgraph=True, backend="aot_eager")
    for one, two in zip(compiled(times), _counted(times), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(Exception, match=r"k must be given in torch\.compile"):
        torch.compile(lambda t: Spikes.from_times(t).to_times(), fullgraph=True, backend="aot_eager")(times)


@pytest.mark.parametrize("encode", [latency_encode, binary_latency_encode, sequence_encode])
def test_encoders_compile_to_one_graph(encode):
    images = torch.rand(2, 3, 4)
    compiled = torch.compile(encode, fullgraph=True, backend="aot_eager")
    assert compiled(images).equal(encode(images))
    vmapped = torch.func.vmap(lambda image: encode(image[None]).first_spike_time()[0])
    assert torch.equal(vmapped(images), encode(images).first_spike_time())


def test_a_compiled_function_takes_and_returns_them(spikes):
    compiled = torch.compile(lambda x: x.reordered(x.time + 1.0, x.index), fullgraph=True, backend="aot_eager")
    later = compiled(spikes)
    assert type(later) is type(spikes)
    assert torch.equal(later.first_spike_time(), spikes.first_spike_time() + 1.0)


class _Later(nn.Module):
    def forward(self, spikes: Spikes) -> Spikes:
        return spikes.reordered(spikes.time + 1.0, spikes.index)


def test_a_module_of_them_is_exported_saved_and_loaded(spikes):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(_Later(), (spikes,)), buffer)
    buffer.seek(0)
    assert torch.export.load(buffer).module()(spikes).equal(_Later()(spikes))


def test_vmap_over_samples(spikes):
    def first(sample: Spikes) -> tuple[torch.Tensor, ...]:
        assert sample.time.shape == (3,)
        batch = sample[None]
        return batch.first_spike_time()[0], batch.count()[0], sample.to_times(2), sample.to_raster(1.0, 10.0)

    alone = [first_times(sample) for sample in spikes]
    times, counts, several, raster = torch.func.vmap(first)(spikes)
    assert times.tolist() == alone
    assert torch.equal(counts, spikes.count())
    assert torch.equal(several, spikes.to_times(2))
    assert torch.equal(raster.transpose(0, 1), spikes.to_raster(1.0, 10.0))
    shifted = torch.func.vmap(lambda sample: sample.reordered(sample.time + 1.0, sample.index))(spikes)
    assert torch.equal(shifted.first_spike_time(), spikes.first_spike_time() + 1.0)


def test_jacobian_of_first_spike_times():
    times = torch.tensor([[3.0, 7.0, 1.0]])
    jacobian = torch.func.jacrev(lambda t: Spikes.from_times(t).first_spike_time())(times)
    assert torch.equal(jacobian.reshape(3, 3), torch.eye(3))


def test_the_gradient_of_hidden_spikes_is_seen_by_a_hook_on_their_times():
    """What docs/extending.md recommends."""
    layer = SpikingLinear(3, 4, solver=TimeStepped(20.0, 1.0))
    nn.init.constant_(layer.weight, 10.0)
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda layer, args, out: out.time.register_hook(seen.append) and None)
    out = layer(Spikes.from_times(TIMES))
    out.time[out.index >= 0].sum().backward()
    assert seen[0].shape == out.time.shape
    assert seen[0].sum() == (out.index >= 0).sum() > 0
