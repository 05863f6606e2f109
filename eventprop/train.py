"""The command line: ``python -m eventprop.train +experiment=mnist``."""

from __future__ import annotations

import ctypes
import logging
import os
import statistics
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .config import CONFIG_DIRECTORY, Config, ConfigError, parse
from .data import DataError
from .training.checkpoint import CheckpointError
from .training.loop import train
from .training.parallel import Processes, silence_followers
from .training.run_log import RunDirectory

log = logging.getLogger(__name__)

# part of the names of run directories, so that runs which start at once have directories of their own
OmegaConf.register_new_resolver("pid", os.getpid, use_cache=True, replace=True)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large blocks that are freed. It gives those above 32 MiB back to the system, and to get them
    again, page by page, takes a third to a half of a step of ``mnist_csnn``. Other systems are left as they are."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-4, 0)  # M_MMAP_MAX; glibc before 2.35 takes no larger M_MMAP_THRESHOLD than its own


def run(config: DictConfig, parse: Callable[[DictConfig], Config], method: str) -> None:
    """Train what ``config`` says in the run directory that Hydra has made, and report the test accuracy."""
    keep_freed_memory()
    try:
        checked = parse(config)
        processes, directory = Processes(), None
        if processes.size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError(
                "-m must not be combined with torchrun; start a sweep with python -m, or one run with torchrun"
            )
        if processes.is_first:
            directory = RunDirectory(HydraConfig.get().runtime.output_dir, config, checked.train.resume)
        summary = train(checked, directory, method, processes)
    except (ConfigError, DataError, CheckpointError, FileExistsError) as error:  # mistakes, which name themselves
        log.error("%s", error)
        raise
    except Exception:
        log.exception("the run failed")  # in train.log as well: in a sweep, others go on
        raise
    if directory is None:
        return
    validation = (
        f"validation {100 * summary['validation_accuracy']:.2f} %, " if "validation_accuracy" in summary else ""
    )
    log.info(
        "%s, %s, seed %d\n"
        "  accuracy   test %.2f %%, %straining %.2f %% (%d epochs of %s samples from %s)\n"
        "  time       %.0f s in all, %.1f s per epoch\n"
        "  activity   %.1f hidden spikes per sample, %.1f %% of the hidden neurons silent\n"
        "  files      %s",
        summary["experiment"], method, summary["seed"],
        100 * summary["test_accuracy"], validation, 100 * summary["train_accuracy"], summary["epochs"],
        f"{summary['dataset']['n_train']:,}", summary["dataset"]["source"],
        summary["train_seconds"], statistics.median(summary["seconds_per_epoch"]),
        summary["hidden_spikes_per_sample"], 100 * summary["silent_fraction"], directory.path,
    )  # fmt: skip


@hydra.main(version_base="1.3", config_path=CONFIG_DIRECTORY, config_name="config")
def main(config: DictConfig) -> None:
    """Train one network with exact gradients."""
    run(config, parse, "eventprop")


if __name__ == "__main__":
    silence_followers()
    main()
