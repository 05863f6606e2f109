"""What a run leaves in its directory: config.yaml, metrics.jsonl, checkpoint.pt, the checkpoint before that and, when
finished, summary.json."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from .checkpoint import CheckpointError, load_checkpoint, previous_of, save_checkpoint
from .config import ConfigError

log = logging.getLogger(__name__)

# what may be configured otherwise when a run is resumed
MAY_CHANGE = {
    "train.resume", "train.checkpoint_every", "logger.name", "logger.progress", "logger.tensorboard", "data.root",
}  # fmt: skip


class RunDirectory:
    """The files of one run. A directory that already holds a run is refused, so that nothing is overwritten.

    Args:
        path: of the directory, made if it is not there.
        config: kept in config.yaml.
        resume: go on with a run that the directory holds, if it holds one.

    Attributes:
        resumed: the checkpoint to go on from; None for a new run.

    Raises:
        FileExistsError: if the directory holds a run and ``resume`` is false, or the run is finished.
        CheckpointError: if the files of the run to resume cannot be read, or do not fit together.
        ConfigError: if the run to resume had another configuration.
    """

    def __init__(self, path: str | Path, config: DictConfig, resume: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(
                f"{self.path} is that of a run that is going on; choose another hydra.run.dir"
            ) from None
        if (self.path / "summary.json").exists():
            raise FileExistsError(f"{self.path} holds a finished run (summary.json); choose another hydra.run.dir")
        for name in () if resume else ("metrics.jsonl", "checkpoint.pt", "config.yaml"):
            if (self.path / name).exists():
                raise FileExistsError(
                    f"{self.path} already holds a run ({name}); choose another hydra.run.dir, or train.resume=true to go on "
                    f"with it"
                )
        self._config = OmegaConf.to_container(config, resolve=True)
        self.resumed = self._resume(config) if resume else None
        self._write("config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())

    def release(self) -> None:
        """Let others have the directory. One in which nothing came about holds no run."""
        names = ("metrics.jsonl", "checkpoint.pt", "summary.json", "bad_batch.pt")
        if not any((self.path / name).exists() for name in names):
            (self.path / "config.yaml").unlink(missing_ok=True)
        self._lock.release()

    def _resume(self, config: DictConfig) -> dict[str, Any] | None:
        """The checkpoint of the run to go on with, after a check that the other files fit it; None if there is no run."""
        checkpoint, metrics = self.path / "checkpoint.pt", self.path / "metrics.jsonl"
        rows = _rows(metrics)
        state = None
        if checkpoint.exists() or previous_of(checkpoint).exists():
            state = load_checkpoint(checkpoint)
            if not (self.path / "config.yaml").exists():
                raise CheckpointError(
                    f"{self.path} has a checkpoint but no config.yaml to tell its run; choose another hydra.run.dir"
                )
        if (self.path / "config.yaml").exists():
            self._check_same(config)
        epochs = 0 if state is None else state["epoch"]
        # the line of the last epoch may be lost or torn: the checkpoint has it too
        if len(rows) < epochs - 1 or (len(rows) > 1 and state is None):
            raise CheckpointError(
                f"{metrics} has {len(rows)} epochs, {checkpoint} comes after epoch {epochs}; they are not of one run. "
                f"Choose another hydra.run.dir"
            )
        if state is None:
            log.warning("nothing to resume in %s: a new run begins", self.path)
        if len(rows) > epochs:  # the run was stopped between writing the two files, or goes back to an older checkpoint
            log.warning("the metrics of epoch %d and later are computed anew", epochs + 1)
        rows = rows[:epochs]
        if state is not None and len(rows) < epochs:
            rows.append(state["metrics"])
        if metrics.exists() or rows:
            self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        return state

    def _check_same(self, config: DictConfig) -> None:
        """Raise where a run would go on with another configuration than it began with."""
        began, now = flat(OmegaConf.load(self.path / "config.yaml")), flat(config)
        for key in sorted((began.keys() | now.keys()) - MAY_CHANGE):
            if began.get(key) != now.get(key):
                raise ConfigError(
                    f"{self.path} began with {key}={began.get(key)}, got {now.get(key)}; resume with what it began with"
                )

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Write checkpoint.pt, with the configuration, and keep the one before it as checkpoint.previous.pt."""
        save_checkpoint(self.path / "checkpoint.pt", {"config": self._config, **state})

    def bad_batch(self, batch: dict[str, Any]) -> Path:
        """Write the batch that gave a loss or a gradient that is not finite; return where."""
        path = self.path / "bad_batch.pt"
        torch.save(batch, path)
        return path

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, self.path / name)


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl, up to the first line that is not whole."""
    rows: list[dict[str, Any]] = []
    for line in metrics.read_text(errors="replace").splitlines() if metrics.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def flat(config: Any) -> dict[str, Any]:
    """The values of a configuration by their full keys."""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, value)
        else:
            yield prefix, node

    return dict(walk("", OmegaConf.to_container(config, resolve=True)))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("eventprop", "torch", "numba", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
