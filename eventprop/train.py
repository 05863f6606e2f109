"""The command line: ``python -m eventprop.train +experiment=mnist``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eventprop.training.command_line import (
    SHOW_TRACEBACKS,
    command,
    fail,
    is_mistake,
    note_in_files,
    one_line,
    readable,
)
from eventprop.training.config import CONFIG_DIRECTORY, Config, ConfigError, parse
from eventprop.training.loop import train
from eventprop.training.parallel import Processes, silence_followers
from eventprop.training.process import tuned_process
from eventprop.training.run_log import RunDirectory
from eventprop.training.summary import in_words

log = logging.getLogger(__name__)

# part of the names of run directories, so that runs which start at once have directories of their own
OmegaConf.register_new_resolver("pid", os.getpid, use_cache=True, replace=True)


def run(config: DictConfig, parse: Callable[[DictConfig], Config], method: str) -> None:
    """Train what ``config`` says in the run directory that Hydra has made, and report the test accuracy."""
    with tuned_process():
        _run(config, parse, method)


def _run(config: DictConfig, parse: Callable[[DictConfig], Config], method: str) -> None:
    output, sweep = HydraConfig.get().runtime.output_dir, HydraConfig.get().mode == RunMode.MULTIRUN
    directory = None
    try:
        checked = parse(config)
        processes = Processes()
        if processes.size > 1 and sweep:
            sweep = False  # it ends here
            raise ConfigError(
                "-m must not be combined with torchrun; start a sweep with python -m, or one run with torchrun"
            )
        if processes.is_first:
            directory = RunDirectory(output, config, checked.train.resume)
        summary = train(checked, directory, method, processes)
    except Exception as error:
        error.add_note(f"in the run in {output}")
        if not is_mistake(error):
            log.exception("the run failed")  # in train.log as well: in a sweep, others go on
        elif sweep:
            log.error("%s", one_line(error))
        else:
            note_in_files(log, error)
            if not SHOW_TRACEBACKS:
                fail(error)
        raise
    if directory is not None:
        log.info("%s", in_words(summary, directory.path))


def start(main: Callable[[], None]) -> None:
    """Run a training command. What Hydra raises before it calls ``run`` are mistakes in the arguments."""

    def handed_on() -> None:
        try:
            with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra hands on its errors instead of printing them
                main()
        except (HydraException, OmegaConfBaseException, BrokenPipeError):
            raise
        except Exception as error:
            if hasattr(error, "__notes__"):  # it comes from ``run``
                raise
            if isinstance(error, OSError):
                raise ConfigError(f"{error}; choose another hydra.run.dir, or hydra.sweep.dir of a sweep") from error
            raise ConfigError(f"{error}; got {' '.join(sys.argv[1:])}") from error
        except SystemExit as end:
            raise SystemExit(2 if end.code == 1 else end.code) from end  # Hydra's own, after a message

    logging.raiseExceptions = False  # a reader of the output that leaves does not stop a run, nor fills stderr
    silence_followers()
    sys.argv[1:] = map(readable, sys.argv[1:])
    command(handed_on)


@hydra.main(version_base="1.3", config_path=CONFIG_DIRECTORY, config_name="config")
def main(config: DictConfig) -> None:
    """Train one network with exact gradients."""
    run(config, parse, "eventprop")


if __name__ == "__main__":
    start(main)
