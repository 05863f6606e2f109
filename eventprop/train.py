"""The command line: ``python -m eventprop.train +experiment=mnist``."""

from __future__ import annotations

import logging

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .config import CONFIG_DIRECTORY, parse
from .training.loop import train
from .training.run_log import RunDirectory

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONFIG_DIRECTORY, config_name="config")
def main(config: DictConfig) -> None:
    """Train one network and report its test accuracy."""
    checked = parse(config)
    directory = RunDirectory(HydraConfig.get().runtime.output_dir, config)
    summary = train(checked, directory)
    log.info(
        "%s: test accuracy %.2f %% after %d epochs in %.0f s; %s",
        summary["experiment"], 100 * summary["test_accuracy"], summary["epochs"], summary["train_seconds"],
        directory.path / "summary.json",
    )  # fmt: skip


if __name__ == "__main__":
    main()
