"""The configuration of the baseline: the groups of ``eventprop.training.config``, with the baseline's choices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from eventprop import TimeStepped
from eventprop.solvers.solver import Solver
from eventprop.training import config as exact
from eventprop.training.config import Config, ConfigError, Groups, build

from .encoders import Direct, Latency, Poisson
from .losses import FirstSpikeStep, MaxPotential, RateCrossEntropy, RateMSE
from .networks import Steps, integrate_and_fire, leaky_integrate_and_fire, rate_convolutional, rate_fully_connected
from .solver import SurrogateTimeStepped
from .surrogates import SURROGATES, Surrogate


def steps(surrogate: Surrogate, *, detach_reset: bool) -> Steps:
    """``solver=steps``, with what the group ``surrogate`` names."""
    return Steps(surrogate, detach_reset)


def surrogate_time_stepped(surrogate: Surrogate, *, t_end: float, dt: float, detach_reset: bool) -> TimeStepped:
    """``solver=surrogate``, with what the group ``surrogate`` names."""
    return SurrogateTimeStepped(t_end, dt, surrogate=surrogate, detach_reset=detach_reset)


# the choices of rate-coded networks: these go together
RATE_CODED: Groups = {
    "encoder": {"poisson": Poisson, "direct": Direct, "latency_steps": Latency},
    "model": {"rate_fully_connected": rate_fully_connected, "rate_convolutional": rate_convolutional},
    "neuron": {"if_steps": integrate_and_fire, "lif_steps": leaky_integrate_and_fire},
    "solver": {"steps": steps},
    "loss": {
        "rate_mse": RateMSE, "rate_cross_entropy": RateCrossEntropy,
        "first_spike_step": FirstSpikeStep, "max_potential": MaxPotential,
    },
}  # fmt: skip

SPIKE_TIMES = exact.GROUPS | {"solver": {"surrogate": surrogate_time_stepped}, "surrogate": dict(SURROGATES)}
GROUPS: Groups = {group: {**choices, **RATE_CODED.get(group, {})} for group, choices in SPIKE_TIMES.items()}


def parse(config: DictConfig) -> Config:
    """Check a composed configuration and build what it names.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    built = build(config, GROUPS)
    _check_together({group: config[group].name for group in RATE_CODED})
    surrogate = built.pop("surrogate")
    built["solver"] = _checked("solver", built["solver"], surrogate)
    if isinstance(built["neuron"], functools.partial):  # makes a layer each time: try whether it can
        _checked("neuron", built["neuron"])
    if built["train"].mixed_precision and isinstance(built["solver"], Solver):
        raise ConfigError(
            "train.mixed_precision must be false with solver=surrogate, which computes in float32 or float64"
        )
    return Config(**built)


def _check_together(chosen: dict[str, str]) -> None:
    """Raise unless all of these groups are of rate-coded networks, or none is."""
    rate_coded = chosen["model"] in RATE_CODED["model"]
    for group, name in chosen.items():
        if (name in RATE_CODED[group]) != rate_coded:
            allowed = [choice for choice in GROUPS[group] if (choice in RATE_CODED[group]) == rate_coded]
            raise ConfigError(
                f"{group}={name} does not go with model={chosen['model']}, which needs {group}={' or '.join(allowed)}"
            )


def _checked(group: str, make: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{group}.{error}") from error
