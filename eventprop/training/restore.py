"""A trained network, from the files that its run has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from .checkpoint import load_checkpoint, load_weights
from .config import Config, ConfigError
from .task import build_network

Parse = Callable[[DictConfig], Config]


def restore(
    checkpoint: str | Path, parse: Parse, data: dict[str, Any] | None = None, device: str = "cpu"
) -> tuple[Config, nn.Sequential, dict]:
    """The configuration of a run, changed by ``data`` and ``device``, its trained network, and its checkpoint.

    Raises:
        FileNotFoundError: if there is no checkpoint, or no config.yaml beside it.
        CheckpointError: if the checkpoint is damaged, or of another network than config.yaml describes.
        ConfigError: if the configuration is not one that ``parse`` knows.
    """
    path = Path(checkpoint)
    state = load_checkpoint(path)
    described = path.parent / "config.yaml"
    if not described.is_file():
        raise FileNotFoundError(f"there is no {described}, which a run leaves beside its checkpoint")
    try:
        described_run = OmegaConf.load(described)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{described} cannot be read: {error}") from error
    if not isinstance(described_run, DictConfig):
        raise ConfigError(f"{described} is no configuration of a run")
    changes = {"data": data or {}, "train": {"device": device}}
    changed = OmegaConf.merge(described_run, changes)
    assert isinstance(changed, DictConfig)
    config = parse(changed)
    network = build_network(config, state["task"]["num_inputs"], state["task"]["num_classes"])
    load_weights(network, state["model"])
    return config, network.eval(), state
