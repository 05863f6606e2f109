"""Several processes that share every batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_training import metrics_of, run

from eventprop.training.checkpoint import load_checkpoint
from eventprop.training.parallel import Processes

# 310 samples: with batches of 103, the last one is of 1
OPTIONS = ("+experiment=yin_yang", "data.n_train=310", "data.n_test=100", "data.n_validation=10", "train.epochs=3")


def test_two_processes_are_as_one(tmp_path):
    options = (*OPTIONS, "train.batch_size=103")
    run(tmp_path / "one", *options)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "eventprop.train",
        *options, f"hydra.run.dir={tmp_path / 'two'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/3") == 1  # only the first process speaks
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            # float32 sums in another order, which may move a spike or a prediction across a boundary
            bound = 1e-5 if key.endswith("loss") or key in ("epoch", "learning_rate") else 3 / 310
            assert two[key] == pytest.approx(value, abs=bound), key
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


def test_processes_that_are_asked_to_stop_save_within_the_epoch_and_go_on(tmp_path):
    options = (*OPTIONS, "data.n_train=20000", "train.epochs=2", "train.resume=true")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "eventprop.train",
        *options,
    ]  # fmt: skip
    subprocess.run([*command, f"hydra.run.dir={tmp_path / 'whole'}"], check=True, capture_output=True)
    command.append(f"hydra.run.dir={tmp_path / 'parts'}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        begin = time.monotonic()
        while process.poll() is None and not (tmp_path / "parts" / "metrics.jsonl").exists():
            assert time.monotonic() < begin + 120
            time.sleep(0.01)
        time.sleep(0.2)  # into the second epoch
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert "stopped by SIGTERM after epoch 1, step" in said
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["progress"]["step"] > 0
    subprocess.run(command, check=True, capture_output=True)
    for whole, parts in zip(metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts"), strict=True):
        # float64 sums of losses in another order; counted twice, the first part of the epoch would weigh more
        assert parts == pytest.approx(whole, rel=1e-12)


def test_batch_normalisation_needs_one_process():
    processes = Processes()
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    processes.check(network)
    processes.size = 2
    with pytest.raises(
        ValueError, match="batch normalisation, which needs whole batches, must be trained by one process"
    ):
        processes.check(network)
