"""The configuration: what each group may choose from, and the checks that stand between a typing mistake and a run.

Every group names one of the functions or classes below; its other keys are that callable's own parameters. So the schema
of a group is a signature: an unknown key, a wrong type or a missing value is an error that names the key.
"""

from __future__ import annotations

import difflib
import dis
import functools
import inspect
import itertools
import math
import re
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from eventprop.core.checks import choice, positive, whole
from eventprop.core.neuron import LIF
from eventprop.data import load_delayed_match, load_fashion_mnist, load_mnist, load_yin_yang
from eventprop.encoders import binary_latency_encode, latency_encode, sequence_encode
from eventprop.losses import FirstSpike, MaxVoltage, MeanVoltage, SpikeCount, WeightedVoltage
from eventprop.solvers.event_driven import EventDriven
from eventprop.solvers.support import UnsupportedError
from eventprop.solvers.time_stepped import BackwardRule, TimeStepped

from .networks import convolutional, fully_connected, recurrent
from .optimizers import SGD, Adam

PACKAGE = Path(__file__).parents[1]
# a wheel carries the configuration inside the package, a checkout has it beside the package
CONFIG_DIRECTORY = str(next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()))


class ConfigError(ValueError):
    """A mistake in the configuration; the message names the key."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs, batch_size: whole numbers >= 1.
        silent: what to do after each epoch but the last about hidden neurons that never fired in it: "none", or "bump", which
            raises all their incoming weights by ``bump`` times the weight with which one spike of every input would fire them.
        device: of the network and the data, as torch names it.
        dtype: "float32" or "float64".
        mixed_precision: whether torch's own products and convolutions run in bfloat16, by autocast; not for exact gradients.
        resume: go on with the run in this directory, from its last checkpoint.
        checkpoint_every: how often to write a checkpoint within an epoch, such as "10 min" or "500 steps"; there is one after
            every epoch as well.
    """

    epochs: int = 10
    batch_size: int = 64
    silent: str = "none"
    bump: float = 0.1
    device: str = "cpu"
    dtype: str = "float32"
    mixed_precision: bool = False
    resume: bool = False
    checkpoint_every: str = "10 min"

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, minimum=1)
        whole("batch_size", self.batch_size, minimum=1)
        choice("silent", self.silent, ("none", "bump"))
        positive("bump", self.bump)
        choice("dtype", self.dtype, ("float32", "float64"))
        try:
            torch.zeros(1, device=self.device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = re.split(r"\. |\n", str(error))[0]
            raise ValueError(f"device {self.device!r} cannot be used here: {reason}") from error
        if self.mixed_precision and self.dtype != "float32":
            raise ValueError(f"mixed_precision needs dtype=float32, got {self.dtype}")
        self.checkpoint_timer()

    def checkpoint_timer(self) -> Callable[[], bool]:
        """What to ask after each step whether a checkpoint is due; the time and the steps count from now."""
        amount, _, unit = self.checkpoint_every.partition(" ")
        if unit not in ("min", "steps") or not amount.isdecimal() or int(amount) == 0:
            raise ValueError(
                f"checkpoint_every must be a whole number > 0 of min or steps, such as '10 min' or '500 steps', got "
                f"{self.checkpoint_every!r}"
            )
        period = int(amount) * (60 if unit == "min" else 1)
        now = time.monotonic if unit == "min" else itertools.count(1).__next__
        last = time.monotonic() if unit == "min" else 0

        def due() -> bool:
            nonlocal last
            reached = now()
            if reached - last < period:
                return False
            last = reached
            return True

        return due

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.mixed_precision)


@dataclass(frozen=True)
class Logging:
    """What a run shows beside its files.

    Attributes:
        progress: "bar", "lines" (one per epoch), or "auto": a bar on a terminal, lines elsewhere.
        tensorboard: whether to write metrics, spike rasters and weight maps for TensorBoard, to the run directory.
    """

    progress: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        choice("progress", self.progress, ("auto", "bar", "lines"))


Groups = dict[str, dict[str, Callable[..., Any]]]

GROUPS: Groups = {
    "data": {
        "mnist": load_mnist,
        "fashion_mnist": load_fashion_mnist,
        "yin_yang": load_yin_yang,
        "delayed_match": load_delayed_match,
    },
    "encoder": {"latency": latency_encode, "binary_latency": binary_latency_encode, "sequence": sequence_encode},
    "model": {"fully_connected": fully_connected, "convolutional": convolutional, "recurrent": recurrent},
    "neuron": {"lif": LIF},
    "solver": {"event_driven": EventDriven, "time_stepped": TimeStepped, "euler": TimeStepped},
    "loss": {
        "first_spike": FirstSpike,
        "max_voltage": MaxVoltage,
        "mean_voltage": MeanVoltage,
        "weighted_voltage": WeightedVoltage,
        "spike_count": SpikeCount,
    },
    "optimizer": {"adam": Adam, "sgd": SGD},
    "train": {"default": Training},
    "logger": {"default": Logging},
}


@dataclass(frozen=True)
class Config:
    """A checked configuration. Groups whose callable still needs data (data, encoder, model) are partial functions."""

    experiment: str
    seed: int
    data: Callable[..., Any]
    encoder: Callable[..., Any]
    model: Callable[..., Any]
    neuron: Any
    solver: Any
    loss: Any
    optimizer: Adam | SGD
    train: Training
    logger: Logging


def parse(config: DictConfig) -> Config:
    """Check a composed configuration and build what it names.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    checked = Config(**build(config, GROUPS))
    if checked.train.mixed_precision:
        raise ConfigError("train.mixed_precision must be false: exact gradients are computed in float32 or float64")
    return checked


def build(config: DictConfig, groups: Groups) -> dict[str, Any]:
    """The experiment, the seed, and what each of the ``groups`` names; errors as for ``parse``."""
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    check_keys("", resolved, ["experiment", "seed", *groups])
    for key, kind in (("experiment", str), ("seed", int)):
        _check_type(key, resolved[key], kind)
    if resolved["seed"] < 0:
        raise ConfigError(f"seed must be >= 0, got {resolved['seed']}")
    built = {group: _build(group, resolved[group], choices) for group, choices in groups.items()}
    _check_window(resolved["encoder"], resolved["solver"])
    return {"experiment": resolved["experiment"], "seed": resolved["seed"], **built}


def _check_window(encoder: dict[str, Any], solver: dict[str, Any]) -> None:
    """Raise where the encoder makes spikes after the end of the solver's window, which would have no effect."""
    for key in ("t_max", "t_off"):
        if key in encoder and "t_end" in solver and encoder[key] > solver["t_end"]:
            raise ConfigError(
                f"encoder.{key}={encoder[key]} must not exceed solver.t_end={solver['t_end']}: later spikes have no effect"
            )
    if "t_step" in encoder and "t_end" in solver and encoder["t_step"] + encoder["t_width"] > solver["t_end"]:
        raise ConfigError(
            f"encoder.t_step={encoder['t_step']} must leave time for a second row: t_step + t_width={encoder['t_width']} must "
            f"not exceed solver.t_end={solver['t_end']}"
        )


def _build(group: str, node: object, choices: dict[str, Callable[..., Any]]) -> Any:
    if not isinstance(node, dict) or "name" not in node:
        raise ConfigError(f"{group} must be a group with a name, such as {group}={next(iter(choices))}; got {node!r}")
    name = node["name"]
    if not isinstance(name, str) or name not in choices:
        raise ConfigError(
            f"{group}.name must be one of {', '.join(choices)}, got {name!r}; choose one, such as {group}={next(iter(choices))}"
        )
    target = choices[name]
    options = _options(target)
    values = {key: value for key, value in node.items() if key != "name"}
    check_keys(group, values, list(options))
    for key, kind in options.items():
        _check_type(f"{group}.{key}", values[key], kind)
    if not inspect.isclass(target):
        return functools.partial(target, **values)
    with mistakes_in(group):
        return target(**values)


@contextmanager
def mistakes_in(group: str = "") -> Iterator[None]:
    """Within, a ValueError or TypeError that these packages raise is a mistake in the configuration: it names an argument of
    what the ``group`` names, or of a layer, a solver or a loss. Those that Python or torch raises are bugs."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError, UnsupportedError):  # such as a DataError, which says all
            raise
        if not _raised_here(error):
            raise
        prefix = f"{group}." if group else ""
        raise ConfigError(prefix + str(error).removeprefix(prefix)) from error


def _raised_here(error: Exception) -> bool:
    """Whether a ``raise`` in one of these packages has raised the error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code, module = last.tb_frame.f_code, last.tb_frame.f_globals.get("__name__", "")
    here = module.partition(".")[0] in ("eventprop", "surrogate_baseline")
    return here and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _options(target: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of the parameters that a configuration sets: all with a default, and the keyword-only ones; without
    those that no file can hold, such as a backward rule."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters.values()
    return {
        p.name: hints[p.name]
        for p in parameters
        if p.kind != p.VAR_KEYWORD and (p.kind == p.KEYWORD_ONLY or p.default is not p.empty or inspect.isclass(target))
        if hints[p.name] is not BackwardRule
    }


def check_keys(group: str, found: dict, expected: list[str], complete: bool = True) -> None:
    """Raise for a key that is not ``expected`` and, if the keys must be ``complete``, for one that is missing."""
    prefix = f"{group}." if group else ""
    for key in found:
        if key not in expected:
            close = difflib.get_close_matches(str(key), expected, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"allowed are {', '.join(expected) or 'none'}"
            raise ConfigError(f"unknown key {prefix}{key}; {hint}")
    for key in expected if complete else []:
        if key not in found:
            raise ConfigError(f"missing key {prefix}{key}")


def _check_type(key: str, value: object, kind: Any) -> None:
    if any(isinstance(x, int) and abs(x) >= 2**63 for x in (value if isinstance(value, list) else [value])):
        raise ConfigError(f"{key} must fit into 64 bits, got {value}")
    if not _matches(value, kind):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ConfigError(f"{key} must be of type {name}, got {value!r} of type {type(value).__name__}")


def _matches(value: object, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_matches(item, typing.get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
