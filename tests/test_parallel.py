"""Several processes that share every batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from test_training import metrics_of, run

# 310 samples: a last batch of 22, and of 1 with batches of 103
OPTIONS = ("+experiment=yin_yang", "data.n_train=310", "data.n_test=100", "data.n_validation=10", "train.epochs=3")


@pytest.mark.parametrize("batch_size", [32, 103])
def test_two_processes_are_as_one(tmp_path, batch_size):
    options = (*OPTIONS, f"train.batch_size={batch_size}")
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
            assert two[key] == pytest.approx(value, abs=1e-5), key  # float32 sums in another order
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
