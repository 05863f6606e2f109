"""A trained network, from the files that its run has left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from ..config import Config, ConfigError, check_keys
from .checkpoint import load_checkpoint
from .loop import build_network

Parse = Callable[[DictConfig], Config]


def options(arguments: Sequence[str], allowed: dict[str, Any]) -> dict[str, Any]:
    """The values of command-line arguments KEY=VALUE; ``allowed`` has their defaults, None for those that must be given.

    A default tells the type of a value: a bool, a whole number, or else text. Keys such as ``data.root`` belong to the default
    ``{}`` of ``data``, and have the types that YAML gives them.

    Raises:
        ConfigError: if an argument has another form, is unknown, or is missing.
    """
    values = dict(allowed)
    nested: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(
                f"arguments have the form KEY=VALUE with KEY one of {', '.join(allowed)}; got {argument!r}"
            )
        group, dot, inner = key.partition(".")
        if dot and allowed.get(group) == {}:
            nested.setdefault(group, []).append(f"{inner}={text}")
            continue
        check_keys("", {key: text}, list(allowed), complete=False)
        default = allowed[key]
        if default == {}:
            raise ConfigError(f"{key} is a group; give its keys, as in {key}.root=DIR")
        if isinstance(default, bool):
            if text not in ("true", "false"):
                raise ConfigError(f"{key} must be true or false, got {text!r}")
            values[key] = text == "true"
        elif isinstance(default, int):
            if not text.isdecimal() or int(text) == 0:
                raise ConfigError(f"{key} must be a whole number >= 1, got {text!r}")
            values[key] = int(text)
        else:
            values[key] = text
    for key, value in values.items():
        if value is None or value == "":
            raise ConfigError(f"{key} is missing; give it as {key}=VALUE")
    for group, texts in nested.items():
        try:
            values[group] = OmegaConf.to_container(OmegaConf.from_dotlist(texts))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"cannot read {group}.{texts[0]}: {error}") from error
    return values


def restore(
    checkpoint: str | Path, parse: Parse, data: dict[str, Any] | None = None, device: str = "cpu"
) -> tuple[Config, nn.Sequential, dict]:
    """The configuration of a run, changed by ``data`` and ``device``, its trained network, and its checkpoint.

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
    try:
        described_run = OmegaConf.load(described)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{described} cannot be read: {error}") from error
    if not isinstance(described_run, DictConfig):
        raise ConfigError(f"{described} is no configuration of a run")
    changes = {"data": data or {}, "train": {"device": device}}
    changed = OmegaConf.merge(described_run, changes)
    assert isinstance(changed, DictConfig)
    config = parse(changed)
    network = build_network(config, state["task"]["num_inputs"], state["task"]["num_classes"])
    network.load_state_dict(state["model"])
    return config, network.eval(), state
