"""Checkpoints: written so that a whole one is always there, and read so that a damaged one is never taken for whole."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = "eventprop checkpoint 2"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


def previous_of(path: Path) -> Path:
    """Where the checkpoint before that in ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, and keep what was there as ``previous_of(path)``. At any moment ``path`` holds a whole
    checkpoint, the old one or the new one."""
    written, linked = path.with_name(f"{path.name}.tmp"), path.with_name(f"{path.name}.old.tmp")
    with open(written, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        linked.unlink(missing_ok=True)
        try:
            os.link(path, linked)
        except OSError:  # not every file system has hard links
            shutil.copyfile(path, linked)
        os.replace(linked, previous_of(path))
    os.replace(written, path)
    if os.name == "posix":  # the new names, too, survive a loss of power
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that ``save_checkpoint`` wrote to ``path``, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is empty, truncated, corrupt, or no checkpoint of this package.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}" + (f"; {_way_out(path)}" if previous_of(path).is_file() else "")
        )
    try:
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()  # torch.load does not look at the checksums
        if corrupt is not None:
            raise ValueError(f"the checksum of {corrupt} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # whatever zipfile and torch make of damaged bytes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}); {_way_out(path)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of eventprop.train; {_way_out(path)}")
    return state


def load_weights(network: nn.Module, weights: dict[str, Any]) -> None:
    """Give ``network`` the weights of a checkpoint.

    Raises:
        CheckpointError: if they are of another network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint is not of the network that its config.yaml describes: {error}"
        ) from error


def _way_out(path: Path) -> str:
    previous = previous_of(path)
    if previous.is_file():
        return f"the checkpoint before it is kept: to use that one, rename {previous} to {path.name}"
    return "choose another hydra.run.dir"
