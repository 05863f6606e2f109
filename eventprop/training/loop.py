"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from eventprop.core.spikes import Spikes
from eventprop.data import Dataset, Split
from eventprop.losses import ParameterError

from . import tensorboard
from .config import Config, ConfigError, mistakes_in
from .data import EncodedSplit, ImageSplit, encode, epoch_order, mixed_seed
from .metrics import Progress, Score
from .parallel import Processes
from .policies import bump_silent, check_can_bump
from .run_log import RunDirectory, versions
from .state import State
from .stop import StopRequest, noting

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is NaN or infinite; ``batch`` is what it came from."""

    batch: dict[str, Any]


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
    finally:
        if directory is not None:
            directory.release()


def _train(config: Config, directory: RunDirectory | None, method: str, processes: Processes) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    dataset = load_data(config)
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    splits = {name: encoded(config, split) for name, split in parts.items() if split is not None}
    network = build_network(config, splits["train"].num_inputs, dataset.num_classes)
    sizes = {name: len(split) for name, split in splits.items()}
    task = {
        "dataset": dataset.name,
        "sizes": sizes,
        "sample_shape": list(dataset.test.images.shape[1:]),
        "num_inputs": splits["train"].num_inputs,
        "num_classes": dataset.num_classes,
    }
    training = splits.pop("train")
    log.info("%s from %s: %s", dataset.name, dataset.source, ", ".join(f"{name} {n}" for name, n in sizes.items()))
    log.info("%s", network)
    check_can_bump(config.train.silent, network)
    processes.check(network)
    optimizer = config.optimizer.build(network.parameters())
    state = State(network, optimizer, config.optimizer.schedule(optimizer, config.train.epochs), task)
    if (resumed := processes.from_first(directory and directory.resumed)) is not None:
        state.load_state_dict(resumed)
        state.progress = processes.resume(state.progress, network)
        log.info("resuming after epoch %d, step %d", state.epoch, state.progress.step)

    with noting(processes.stop), contextlib.ExitStack() as closing:
        board = None
        if config.logger.tensorboard and directory is not None:
            shown: Any = next(iter(splits["test"].batches(tensorboard.SAMPLES)))[0]
            board = tensorboard.TensorBoard(directory.path / "tensorboard", dataset, shown, state.epoch + 1)
            closing.callback(board.close)
        due = config.train.checkpoint_timer()

        def after_step() -> None:
            stopping = processes.stopping
            if stopping:
                processes.add_progress(state.progress)
            if directory is not None and (stopping or (processes.size == 1 and due())):
                directory.checkpoint(state.state_dict())
            if stopping:
                _exit(processes.stop, state)

        for epoch in range(state.epoch, config.train.epochs):
            state.epoch_begins()
            metrics = {"epoch": epoch + 1, "learning_rate": state.scheduler.get_last_lr()[0]}
            try:
                metrics |= train_epoch(
                    config, network, optimizer, training, epoch, state.progress, after_step, processes
                )
            except NonFiniteError as error:
                if directory is not None:
                    error.args = (f"{error}. The batch is in {directory.bad_batch(error.batch)}",)
                raise
            activity = state.progress.activity
            state.scheduler.step()
            state.epoch_is_trained()
            for name, split in splits.items():
                metrics |= evaluate(config, network, split, name)
            if config.train.silent == "bump" and state.epoch < config.train.epochs:
                metrics["bumped_neurons"] = bump_silent(activity, config.train.bump)
            metrics["seconds"] = state.seconds[-1]
            state.metrics = metrics
            if directory is not None:
                directory.epoch(metrics)
                directory.checkpoint(state.state_dict())
            if board is not None:
                board.epoch(network, metrics)
            log.info(
                "epoch %d/%d  train loss %.4f accuracy %.2f %%  test loss %.4f accuracy %.2f %%  hidden spikes %.1f  %.1f s",
                epoch + 1, config.train.epochs, metrics["train_loss"], 100 * metrics["train_accuracy"],
                metrics["test_loss"], 100 * metrics["test_accuracy"], metrics["hidden_spikes_per_sample"],
                metrics["seconds"],
            )  # fmt: skip
            if state.epoch < config.train.epochs and processes.any(processes.stop.signal is not None):
                _exit(processes.stop, state)

    summary = {"experiment": config.experiment, "method": method, "processes": processes.size}
    summary |= _summary(config, dataset, sizes, state)
    if directory is not None:
        directory.summary(summary)
    return summary


def _summary(config: Config, dataset: Dataset, sizes: dict[str, int], state: State) -> dict[str, Any]:
    """What a finished run was, and what it came to; ``sizes`` are those of the splits."""
    metrics, network = state.metrics, state.network
    return {
        **{key: value for key, value in metrics.items() if key.endswith(("_accuracy", "_loss"))},
        "epochs": config.train.epochs,
        "seed": config.seed,
        "train_seconds": state.train_seconds,
        "seconds_per_epoch": state.seconds,
        "dataset": {
            "name": dataset.name, "source": dataset.source, **{f"n_{name}": n for name, n in sizes.items()},
        },
        "num_parameters": sum(p.numel() for p in network.parameters()),
        **{k: metrics[k] for k in ("hidden_spikes_per_sample", "silent_fraction", "grazing_spikes_per_sample")},
        "device": config.train.device,
        "dtype": config.train.dtype,
        "mixed_precision": config.train.mixed_precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip


def load_data(config: Config) -> Dataset:
    """The data set that ``config`` describes."""
    with mistakes_in("data"):
        return config.data()


def encoded(config: Config, split: Split) -> EncodedSplit | ImageSplit:
    """A split of the data as batches of what the network takes."""
    with mistakes_in("encoder"):
        return encode(split, config.encoder, getattr(torch, config.train.dtype), config.train.device, config.seed)


def build_network(config: Config, num_inputs: int, num_classes: int) -> nn.Sequential:
    """The network that ``config`` describes, with initial weights from torch's generator."""
    with mistakes_in("model"):
        return config.model(
            num_inputs, num_classes, config.loss, config.neuron, config.solver,
            device=config.train.device, dtype=getattr(torch, config.train.dtype),
        )  # fmt: skip


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
    score, activity = progress.score, progress.activity
    if progress.step == 0:
        # for dropout: an epoch does not depend on those before, and processes draw apart
        torch.manual_seed(mixed_seed(config.seed, epoch + 1, *([processes.rank] if processes.size > 1 else [])))
    size = config.train.batch_size
    batches = data.batches(size, epoch_order(len(data), config.seed, epoch), epoch + 1, progress.step, processes.part)
    bar = config.logger.progress == "bar" or (config.logger.progress == "auto" and sys.stderr.isatty())
    shown = tqdm(
        batches, f"epoch {epoch + 1}", -(-len(data) // size), initial=progress.step, leave=False, disable=not bar
    )
    with activity:
        for inputs, target in shown:
            optimizer.zero_grad()
            loss = None
            if len(target):  # a last batch may be too small for all processes
                with mistakes_in():
                    with config.train.autocast():
                        output = network(inputs)
                    loss = loss_of(config, output, target)
                    loss.backward()
                score.add(loss, config.loss.predict(output), target)
            processes.add_gradients(network, len(target))
            if (bad := _not_finite(loss, network)) is not None:
                of_loss = (
                    "" if loss is None else f"; the loss is {loss.item():.3g}, which options of it, loss.*, may lower"
                )
                error = NonFiniteError(
                    f"{bad} is not finite in epoch {epoch + 1}, step {progress.step + 1}; the weights are still those before "
                    f"that step. Try a lower optimizer.lr, or solver.grazing=clamp{of_loss}"
                )
                error.batch = {"epoch": epoch, "step": progress.step, "inputs": _plain(inputs), "target": target}
                raise error
            optimizer.step()
            progress.step += 1
            after_step()
    processes.add_progress(progress)
    return score.summary("train") | activity.summary()


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


def _not_finite(loss: Tensor | None, network: nn.Sequential) -> str | None:
    """The name of what is NaN or infinite: the loss, or the first gradient that is."""
    if loss is not None and not loss.isfinite():
        return "the loss"
    for name, parameter in network.named_parameters():
        # a sum shows inf and NaN in a small part of the time, but may itself overflow
        grad = parameter.grad
        if grad is not None and not grad.sum().isfinite() and not grad.isfinite().all():
            return f"the gradient of {name}"
    return None


def _plain(inputs: Spikes | Tensor) -> dict[str, Any] | Tensor:
    """A batch as what a file can hold."""
    if isinstance(inputs, Spikes):
        return {"time": inputs.time, "index": inputs.index, "shape": inputs.shape, "height": inputs.height}
    return inputs


def _exit(stop: StopRequest, state: State) -> NoReturn:
    number = stop.signal or signal.SIGTERM  # which another process may have received
    log.info(
        "stopped by %s after epoch %d, step %d; train.resume=true goes on from there",
        number.name, state.epoch, state.progress.step,
    )  # fmt: skip
    raise SystemExit(128 + number)
