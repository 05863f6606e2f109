"""What a run leaves in its directory: config.yaml, metrics.jsonl, checkpoint.pt and, when finished, summary.json."""

from __future__ import annotations

import json
import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class RunDirectory:
    """The files of one run. A directory that already holds a run is refused, so that nothing is overwritten.

    Raises:
        FileExistsError: if the directory holds a run.
    """

    def __init__(self, path: str | Path, config: DictConfig) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "metrics.jsonl", "checkpoint.pt"):
            if (self.path / name).exists():
                raise FileExistsError(f"{self.path} already holds a run ({name}); choose another hydra.run.dir")
        self._write("config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())

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


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("eventprop", "torch", "numba", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
