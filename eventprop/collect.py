"""One table of all runs below a directory: ``python -m eventprop.collect multirun/mnist_gray/...``.

Runs that differ in nothing but their seed are one row. Writes collected.csv and collected.md to the directory, and prints the
latter.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eventprop.training.command_line import command
from eventprop.training.config import ConfigError
from eventprop.training.run_log import MAY_CHANGE, flat

COLUMNS = (
    "experiment", "method", "setting", "n", "test_accuracy_mean", "test_accuracy_sd", "epochs", "seconds_mean",
    "hidden_spikes_mean",
)  # fmt: skip
NO_SETTING = MAY_CHANGE | {"seed", "experiment"}


def collect(directory: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """The rows of the table, and the directories of runs that have no summary.

    A setting is what a run's config.yaml says otherwise than that of another run of the same experiment and method.

    Raises:
        ConfigError: if there is no summary below ``directory``, or one cannot be read.
    """
    summaries = {path.parent: _read(path) for path in sorted(directory.rglob("summary.json"), key=_in_order)}
    if not summaries:
        raise ConfigError(
            f"there is no summary.json in {directory} or below; give the directory of a sweep or of a run"
        )
    unfinished = [path.parent for path in sorted(directory.rglob("config.yaml")) if path.parent not in summaries]
    runs: dict[tuple, dict[Path, dict[str, Any]]] = {}
    for path, summary in summaries.items():
        runs.setdefault((summary["experiment"], summary["method"]), {})[path] = summary
    rows = []
    for (experiment, method), group in runs.items():
        configs = {path: _config(path) for path in group}
        keys = sorted({key for config in configs.values() for key in config} - NO_SETTING)
        keys = [key for key in keys if len({repr(config.get(key)) for config in configs.values()}) > 1]
        settings: dict[str, list[dict[str, Any]]] = {}
        for path, summary in group.items():
            setting = " ".join(f"{key}={_text(configs[path].get(key))}" for key in keys)
            settings.setdefault(setting, []).append(summary)
        rows += [_row(experiment, method, setting, found) for setting, found in settings.items()]
    return rows, unfinished


def _in_order(path: Path) -> list[tuple[float, str]]:
    """A key that sorts job 2 before job 10."""
    return [(int(part) if part.isdigit() else math.inf, part) for part in path.parts]


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text())
        found = {key: summary[key] for key in ("experiment", "method", "test_accuracy", "epochs", "train_seconds")}
        if not all(math.isfinite(found[key]) for key in ("test_accuracy", "train_seconds")):
            raise ValueError("its numbers are not finite")
        return found | {"hidden_spikes_per_sample": summary.get("hidden_spikes_per_sample")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no summary of a run: {error!r}; remove it") from error


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        values = flat(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no configuration of a run: {error}; remove it") from error
    # 5 and 5.0 are one setting
    return {key: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for key, v in values.items()}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(experiment: str, method: str, setting: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["test_accuracy"] for run in runs]
    spikes = [run["hidden_spikes_per_sample"] for run in runs if run["hidden_spikes_per_sample"] is not None]
    values = (
        experiment, method, setting, len(runs), statistics.mean(accuracies),
        statistics.stdev(accuracies) if len(runs) > 1 else None,
        "/".join(map(str, sorted({run["epochs"] for run in runs}))), statistics.mean(run["train_seconds"] for run in runs),
        statistics.mean(spikes) if spikes else None,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def accuracy_text(row: dict[str, Any]) -> str:
    """Mean and standard deviation in percent."""
    mean, sd = row["test_accuracy_mean"], row["test_accuracy_sd"]
    return f"{100 * mean:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for people: accuracies in percent."""
    lines = [
        "| experiment | method | setting | n | test accuracy, % | epochs | seconds | hidden spikes per sample |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spikes = "" if row["hidden_spikes_mean"] is None else f"{row['hidden_spikes_mean']:.0f}"
        cells = (
            row["experiment"], row["method"], row["setting"].replace("|", "\\|"), row["n"], accuracy_text(row), row["epochs"],
            f"{row['seconds_mean']:.0f}", spikes,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise ConfigError(
            f"give one directory, as in python -m eventprop.collect multirun; got {' '.join(arguments)!r}"
        )
    directory = Path(arguments[0])
    rows, unfinished = collect(directory)
    with open(directory / "collected.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (directory / "collected.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows), end="")
    for path in unfinished:
        print(f"not finished: {path}")


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), __doc__)
