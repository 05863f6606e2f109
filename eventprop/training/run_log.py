"""What a run leaves in its directory: config.yaml, metrics.jsonl, checkpoint.pt and, when finished, summary.json."""

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
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


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
        ValueError: if the run to resume had another configuration, or its files cannot be read or do not fit together.
    """

    def __init__(self, path: str | Path, config: DictConfig, resume: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json",) if resume else ("summary.json", "metrics.jsonl", "checkpoint.pt"):
            if (self.path / name).exists():
                way_out = "choose another hydra.run.dir" + ("" if name == "summary.json" else ", or train.resume=true")
                raise FileExistsError(f"{self.path} already holds a run ({name}); {way_out}")
        self.resumed = self._resume(config) if resume else None
        self._write("config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())

    def _resume(self, config: DictConfig) -> dict[str, Any] | None:
        """The checkpoint of the run to go on with, after a check that the other files fit it; None if there is no run."""
        checkpoint, metrics = self.path / "checkpoint.pt", self.path / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        state: dict[str, Any] | None = None
        if checkpoint.exists():
            try:
                state = torch.load(checkpoint, weights_only=True)
                assert state is not None
            except Exception as error:
                raise ValueError(f"{checkpoint} cannot be read ({error}); choose another hydra.run.dir") from error
            self._check_same(config)
        epochs = 0 if state is None else state["epoch"]
        if not epochs <= len(lines) <= epochs + 1:  # a run may be stopped between writing the two files
            raise ValueError(
                f"{metrics} has {len(lines)} epochs, {checkpoint} comes after epoch {epochs}; they are not of one run. "
                f"Choose another hydra.run.dir"
            )
        if state is None:
            log.warning("nothing to resume in %s: a new run begins", self.path)
        if len(lines) > epochs:
            self._write("metrics.jsonl", "".join(lines[:epochs]).encode())
        return state

    def _check_same(self, config: DictConfig) -> None:
        """Raise where a run would go on with another configuration than it began with."""
        if not (self.path / "config.yaml").exists():
            raise ValueError(
                f"{self.path} has a checkpoint but no config.yaml to tell its run; choose another hydra.run.dir"
            )
        began, now = _flat(OmegaConf.load(self.path / "config.yaml")), _flat(config)
        for key in sorted((began.keys() | now.keys()) - {"train.resume"}):
            if began.get(key) != now.get(key):
                raise ValueError(
                    f"{self.path} began with {key}={began.get(key)}, got {now.get(key)}; resume with what it began with"
                )

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Write checkpoint.pt, replacing the previous one only when the new one is complete."""
        temporary = self.path / "checkpoint.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.path / "checkpoint.pt")

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, self.path / name)


def _flat(config: Any) -> dict[str, Any]:
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
