"""Sweeps: many runs from one command, one after the other, at once, or by Slurm's launcher, and one table of them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from test_training import SMALL_YIN_YANG

from eventprop import collect
from eventprop.training.config import ConfigError

TINY = (*SMALL_YIN_YANG, "data.n_validation=10", "model.hidden=[20]", "train.epochs=1")


def sweep(path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eventprop.train", "-m", *TINY, *options, f"hydra.sweep.dir={path}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sweep_goes_on_where_a_job_fails_and_says_why(tmp_path):
    done = sweep(tmp_path, "optimizer.lr=0.01,-1,0.02")
    assert done.returncode != 0
    assert sorted(path.parent.name for path in tmp_path.glob("*/summary.json")) == ["0", "2"]
    assert "optimizer.lr must be positive and finite, got -1" in (tmp_path / "1" / "train.log").read_text()


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_run_at_once(tmp_path, launcher):
    jobs = {
        "joblib": ("hydra.launcher.n_jobs=2",),
        "submitit_local": ("hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"),
    }[launcher]
    done = sweep(tmp_path, "seed=0,1", f"hydra/launcher={launcher}", *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("?/summary.json"))]
    assert len(summaries) == 2
    alone = tmp_path / "alone"
    sweep(alone, "seed=1")
    assert json.loads((alone / "0" / "summary.json").read_text())["test_loss"] == summaries[1]["test_loss"]
    if launcher == "joblib":
        import joblib

        assert {summary["threads"] for summary in summaries} == {max(1, joblib.cpu_count() // 2)}


def write_run(path, accuracy: float, config: str = "", **fields) -> None:
    path.mkdir(parents=True)
    summary = {
        "experiment": "mnist", "method": "eventprop", "test_accuracy": accuracy, "epochs": 3, "train_seconds": 10.0,
        "hidden_spikes_per_sample": 5.0, **fields,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    if config:
        (path / "config.yaml").write_text(config)


def test_runs_are_collected_by_setting(tmp_path, capsys):
    for job, (seed, tau, accuracy) in enumerate(((0, 5, 0.9), (1, "5.0", 0.92), (0, 10.0, 0.95))):
        write_run(tmp_path / str(job), accuracy, f"seed: {seed}\nneuron: {{tau_syn: {tau}, v_th: 1.0}}\n")
    write_run(tmp_path / "other", 0.5, experiment="yin_yang")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml").write_text("seed: 3\n")
    collect.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert f"not finished: {tmp_path / 'killed'}" in said
    assert (tmp_path / "collected.md").read_text() in said
    assert "| mnist | eventprop | neuron.tau_syn=5 | 2 | 91.00 ± 1.41 | 3 | 10 | 5 |" in said
    with open(tmp_path / "collected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["experiment"], row["setting"], int(row["n"]), float(row["test_accuracy_mean"])) for row in rows]
    assert found == [
        ("mnist", "neuron.tau_syn=5", 2, pytest.approx(0.91)),
        ("mnist", "neuron.tau_syn=10", 1, 0.95),
        ("yin_yang", "", 1, 0.5),
    ]
    assert float(rows[0]["test_accuracy_sd"]) == pytest.approx(0.01 * 2**0.5)  # of 0.90 and 0.92, with n - 1
    assert rows[1]["test_accuracy_sd"] == ""


def test_jobs_are_in_the_order_in_which_they_ran(tmp_path):
    for job in range(11):
        write_run(tmp_path / str(job), 0.9, f"train: {{epochs: {job}}}\n")
    rows, _ = collect.collect(tmp_path)
    assert [row["setting"] for row in rows] == [f"train.epochs={job}" for job in range(11)]


def test_what_cannot_be_collected_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no summary.json in .* or below"):
        collect.main([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"give one directory, .* got 'nowhere'"):
        collect.main(["nowhere"])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"summary.json is no summary of a run: KeyError\('experiment'\)"):
        collect.main([str(tmp_path)])
