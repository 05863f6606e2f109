"""What a finished run was and what it came to: for summary.json, and in words."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from .config import Config
from .run_log import versions
from .state import State
from .task import Task


def summarised(config: Config, method: str, processes: int, task: Task, state: State) -> dict[str, Any]:
    """The content of summary.json; ``method`` is the way in which gradients were computed."""
    metrics, network = state.metrics, state.network
    return {
        "experiment": config.experiment,
        "method": method,
        "processes": processes,
        **{key: value for key, value in metrics.items() if key.endswith(("_accuracy", "_loss"))},
        "epochs": config.train.epochs,
        "seed": config.seed,
        "train_seconds": state.train_seconds,
        "seconds_per_epoch": state.seconds,
        "dataset": {
            "name": task.dataset.name, "source": task.dataset.source, **{f"n_{name}": n for name, n in task.sizes.items()},
        },
        "num_parameters": sum(p.numel() for p in network.parameters()),
        **{k: metrics[k] for k in ("hidden_spikes_per_sample", "silent_fraction", "grazing_spikes_per_sample")},
        "device": config.train.device,
        "dtype": config.train.dtype,
        "mixed_precision": config.train.mixed_precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip


def in_words(summary: dict[str, Any], directory: Path) -> str:
    """The summary for people, with the ``directory`` that holds the files of the run."""
    validation = (
        f"validation {100 * summary['validation_accuracy']:.2f} %, " if "validation_accuracy" in summary else ""
    )
    data, seconds = summary["dataset"], statistics.median(summary["seconds_per_epoch"])
    return (
        f"{summary['experiment']}, {summary['method']}, seed {summary['seed']}\n"
        f"  accuracy   test {100 * summary['test_accuracy']:.2f} %, {validation}training "
        f"{100 * summary['train_accuracy']:.2f} % ({summary['epochs']} epochs of {data['n_train']:,} samples from "
        f"{data['source']})\n"
        f"  time       {summary['train_seconds']:.0f} s in all, {seconds:.1f} s per epoch\n"
        f"  activity   {summary['hidden_spikes_per_sample']:.1f} hidden spikes per sample, "
        f"{100 * summary['silent_fraction']:.1f} % of the hidden neurons silent\n"
        f"  files      {directory}"
    )
