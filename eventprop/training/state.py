"""All that training changes, and so what a checkpoint holds."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from .checkpoint import load_weights
from .config import ConfigError
from .metrics import Progress
from .run_log import versions

log = logging.getLogger(__name__)


class State:
    """Network, optimizer, schedule, the position in the training, torch's generators, and what has been measured.

    Attributes:
        task: which data these are, and what it takes to build the network again without them.
        progress: in the epoch that has begun.
        metrics: of the last complete epoch.
        seconds: that each complete epoch took.
    """

    def __init__(
        self, network: nn.Sequential, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, task: dict
    ) -> None:
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.task = task
        self.progress = Progress(network)
        self.metrics: dict[str, Any] = {}
        self.seconds: list[float] = []
        self._run_begin = self._epoch_begin = time.perf_counter()

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return len(self.seconds)

    @property
    def train_seconds(self) -> float:
        """Since the beginning of the run, without the time between a stop and its resume."""
        return time.perf_counter() - self._run_begin

    def epoch_is_trained(self) -> None:
        self.seconds.append(time.perf_counter() - self._epoch_begin)
        self.progress = Progress(self.network)

    def epoch_begins(self) -> None:
        if self.progress.step == 0:
            self._epoch_begin = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        return {
            "epoch": self.epoch,
            "task": self.task,
            "progress": self.progress.state_dict(),
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "metrics": self.metrics,
            "seconds": self.seconds,
            "epoch_seconds": now - self._epoch_begin,
            "train_seconds": now - self._run_begin,
            "versions": versions(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: if it comes from a training on other data.
            CheckpointError: if it is of another network.
        """
        if state["task"] != self.task:
            raise ConfigError(
                f"the run began on {state['task']}, these are {self.task}; resume with the data it began with"
            )
        now = time.perf_counter()
        load_weights(self.network, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # older checkpoints are of transposed weights, and fused optimizers take the strides for equal
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress.load_state_dict(state["progress"])
        torch.set_rng_state(state["generator"])
        if state["cuda_generators"]:
            torch.cuda.set_rng_state_all(state["cuda_generators"])
        self.metrics, self.seconds = state["metrics"], state["seconds"]
        self._epoch_begin, self._run_begin = now - state["epoch_seconds"], now - state["train_seconds"]
        if state["versions"] != versions():
            log.warning("the checkpoint was made with %s, this is %s", state["versions"], versions())
