"""The command line: ``python -m surrogate_baseline.train +experiment=mnist``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from eventprop.train import run, start
from eventprop.training.config import CONFIG_DIRECTORY

from .config import parse


@hydra.main(version_base="1.3", config_path=CONFIG_DIRECTORY, config_name="surrogate")
def main(config: DictConfig) -> None:
    """Train one network with surrogate gradients."""
    run(config, parse, "surrogate")


if __name__ == "__main__":
    start(main)
