"""A trained network, from the files that its run has left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..config import Config, ConfigError, check_keys
from .checkpoint import load_checkpoint
from .loop import build_network

Parse = Callable[[DictConfig], Config]


def options(arguments: Sequence[str], allowed: dict[str, Any]) -> dict[str, Any]:
    """The values of command-line arguments KEY=VALUE; ``allowed`` has their defaults, None for those that must be given.

    Raises:
        ConfigError: if an argument has another form, is unknown, or is missing.
    """
    for argument in arguments:
        if "=" not in argument:
            raise ConfigError(
                f"arguments have the form KEY=VALUE with KEY one of {', '.join(allowed)}; got {argument!r}"
            )
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"cannot read the arguments {' '.join(arguments)}: {error}") from error
    assert isinstance(given, dict)
    values = allowed | {str(key): value for key, value in given.items()}
    check_keys("", values, list(allowed))
    for key, value in values.items():
        if value is None:
            raise ConfigError(f"{key} is missing; give it as {key}=VALUE")
    return values


def restore(
    checkpoint: str | Path, parse: Parse, data: dict[str, Any] | None = None
) -> tuple[Config, nn.Sequential, dict]:
    """The configuration of a run, changed by ``data``, its trained network, and its checkpoint.

    Raises:
        FileNotFoundError: if there is no checkpoint, or no config.yaml beside it.
        CheckpointError: if the checkpoint is damaged.
        ConfigError: if the configuration is not one that ``parse`` knows.
    """
    path = Path(checkpoint)
    state = load_checkpoint(path)
    described = path.parent / "config.yaml"
    if not described.is_file():
        raise FileNotFoundError(f"there is no {described}, which a run leaves beside its checkpoint")
    described_run = OmegaConf.load(described)
    assert isinstance(described_run, DictConfig)
    config = parse(OmegaConf.merge(described_run, {"data": data or {}}))  # type: ignore[arg-type]
    network = build_network(config, math.prod(state["task"]["sample_shape"]), state["task"]["num_classes"])
    network.load_state_dict(state["model"])
    return config, network.eval(), state
