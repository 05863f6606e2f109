"""The training loop."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from eventprop.losses import ParameterError

from .config import Config, ConfigError, mistakes_in
from .data import EncodedSplit, ImageSplit, epoch_order, mixed_seed
from .finite import NonFiniteError, check_finite
from .metrics import Progress, Score
from .parallel import Processes
from .policies import bump_silent, check_can_bump
from .run_log import RunDirectory
from .state import State
from .stop import StopRequest, noting
from .summary import summarised
from .task import Task, build_network, load_task
from .tensorboard import tensorboard_of

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500


def train(
    config: Config, directory: RunDirectory | None, method: str = "eventprop", processes: Processes | None = None
) -> dict[str, Any]:
    """Train the network that ``config`` describes; return the summary that is also written to ``directory``.

    ``method`` is the name that the summary gives to the way gradients are computed. Of several ``processes`` only the first
    has a directory; they write checkpoints only between epochs, and when they are asked to stop.

    Raises:
        NonFiniteError: if a loss or a gradient is NaN or infinite; the batch is kept in ``directory``.
        SystemExit: after SIGTERM or Ctrl-C, with the state kept in ``directory``.
    """
    try:
        return _train(config, directory, method, Processes() if processes is None else processes)
    except NonFiniteError as error:
        if directory is not None:
            error.args = (f"{error}. The batch is in {directory.bad_batch(error.batch)}",)
        raise
    finally:
        if directory is not None:
            directory.release()


def _train(config: Config, directory: RunDirectory | None, method: str, processes: Processes) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    task = load_task(config)
    network = build_network(config, task.training.num_inputs, task.dataset.num_classes)
    log.info("%s", task)
    log.info("%s", network)
    check_can_bump(config.train.silent, network)
    processes.check(network)
    state = _new_or_resumed(config, network, task, directory, processes)
    after_step = _between_steps(config, state, directory, processes)

    with noting(processes.stop), tensorboard_of(config, task, directory, state.epoch + 1) as board:
        for epoch in range(state.epoch, config.train.epochs):
            state.epoch_begins()
            metrics: dict[str, Any] = {"epoch": epoch + 1, "learning_rate": state.scheduler.get_last_lr()[0]}
            metrics |= train_epoch(
                config, network, state.optimizer, task.training, epoch, state.progress, after_step, processes
            )
            activity = state.progress.activity
            state.scheduler.step()
            state.epoch_is_trained()
            for name, split in task.evaluation.items():
                metrics |= evaluate(config, network, split, name)
            is_last = state.epoch == config.train.epochs
            if config.train.silent == "bump" and not is_last:
                metrics["bumped_neurons"] = bump_silent(activity, config.train.bump)
            metrics["seconds"] = state.seconds[-1]
            state.metrics = metrics
            if directory is not None:
                directory.epoch(metrics)
                directory.checkpoint(state.state_dict())
            if board is not None:
                board.epoch(network, metrics)
            _log_epoch(metrics, config.train.epochs)
            if not is_last and processes.any(processes.stop.signal is not None):
                _exit(processes.stop, state)

    summary = summarised(config, method, processes.size, task, state)
    if directory is not None:
        directory.summary(summary)
    return summary


def train_epoch(
    config: Config,
    network: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    data: EncodedSplit | ImageSplit,
    epoch: int,
    progress: Progress | None = None,
    after_step: Callable[[], None] = lambda: None,
    processes: Processes | None = None,
) -> dict[str, float]:
    """One pass over the training data, or what ``progress`` has left of it: a gradient step per batch."""
    network.train()
    processes = Processes() if processes is None else processes
    progress = Progress(network) if progress is None else progress
    if progress.step == 0:
        # for dropout: an epoch does not depend on those before, and processes draw apart
        torch.manual_seed(mixed_seed(config.seed, epoch + 1, *([processes.rank] if processes.size > 1 else [])))
    size, order = config.train.batch_size, epoch_order(len(data), config.seed, epoch)
    batches = data.batches(size, order, epoch + 1, progress.step, processes.part)
    with progress.activity:
        for inputs, target in _with_bar(config, batches, epoch, progress.step, steps=-(-len(data) // size)):
            optimizer.zero_grad()
            # a last batch may be too small for all processes
            loss = _backward(config, network, inputs, target, progress.score) if len(target) else None
            processes.add_gradients(network, len(target))
            check_finite(loss, network, epoch, progress.step, inputs, target)
            optimizer.step()
            progress.step += 1
            after_step()
    processes.add_progress(progress)
    return progress.score.summary("train") | progress.activity.summary()


def _backward(config: Config, network: nn.Sequential, inputs: Any, target: Tensor, score: Score) -> Tensor:
    """The loss of a batch, after its gradients have been computed and its ``score`` added."""
    with mistakes_in():
        with config.train.autocast():
            output = network(inputs)
        loss = loss_of(config, output, target)
        loss.backward()
    score.add(loss, config.loss.predict(output), target)
    return loss


def loss_of(config: Config, output: Any, target: Tensor) -> Tensor:
    """The loss that ``config`` names.

    Raises:
        ConfigError: if one of its parameters does not go with this output.
    """
    try:
        return config.loss(output, target)
    except ParameterError as error:
        raise ConfigError(f"loss.{error}") from error


@torch.no_grad()
def evaluate(
    config: Config,
    network: nn.Sequential,
    data: EncodedSplit | ImageSplit,
    name: str = "test",
    batch_size: int = EVALUATION_BATCH,
) -> dict[str, float]:
    """Loss and accuracy on ``data``, under names that begin with ``name``."""
    network.eval()
    score = Score()
    for inputs, target in data.batches(batch_size):
        with mistakes_in(), config.train.autocast():
            output = network(inputs)
        score.add(loss_of(config, output, target), config.loss.predict(output), target)
    return score.summary(name)


def _new_or_resumed(
    config: Config, network: nn.Sequential, task: Task, directory: RunDirectory | None, processes: Processes
) -> State:
    """The state to begin with, or that of the checkpoint to go on from."""
    optimizer = config.optimizer.build(network.parameters())
    schedule = config.optimizer.schedule(optimizer, config.train.epochs)
    state = State(network, optimizer, schedule, task.description())
    if (resumed := processes.from_first(directory and directory.resumed)) is not None:
        state.load_state_dict(resumed)
        state.progress = processes.resume(state.progress, network)
        log.info("resuming after epoch %d, step %d", state.epoch, state.progress.step)
    return state


def _between_steps(
    config: Config, state: State, directory: RunDirectory | None, processes: Processes
) -> Callable[[], None]:
    """What to call after each step: it writes a checkpoint where one is due, and ends the process where it is asked to stop."""
    due = config.train.checkpoint_timer()

    def after_step() -> None:
        stopping = processes.stopping
        if stopping:
            processes.add_progress(state.progress)
        if directory is not None and (stopping or (processes.size == 1 and due())):
            directory.checkpoint(state.state_dict())
        if stopping:
            _exit(processes.stop, state)

    return after_step


def _exit(stop: StopRequest, state: State) -> NoReturn:
    number = stop.signal or signal.SIGTERM  # which another process may have received
    log.info(
        "stopped by %s after epoch %d, step %d; train.resume=true goes on from there",
        number.name, state.epoch, state.progress.step,
    )  # fmt: skip
    raise SystemExit(128 + number)


def _with_bar(config: Config, batches: Iterable, epoch: int, first: int, steps: int) -> Iterable:
    """The batches, behind a progress bar if one is wanted."""
    wanted = config.logger.progress == "bar" or (config.logger.progress == "auto" and sys.stderr.isatty())
    return tqdm(batches, f"epoch {epoch + 1}", steps, initial=first, leave=False, disable=not wanted)


def _log_epoch(metrics: dict[str, Any], epochs: int) -> None:
    log.info(
        "epoch %d/%d  train loss %.4f accuracy %.2f %%  test loss %.4f accuracy %.2f %%  hidden spikes %.1f  %.1f s",
        metrics["epoch"], epochs, metrics["train_loss"], 100 * metrics["train_accuracy"], metrics["test_loss"],
        100 * metrics["test_accuracy"], metrics["hidden_spikes_per_sample"], metrics["seconds"],
    )  # fmt: skip
