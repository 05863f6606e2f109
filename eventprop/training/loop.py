"""The training loop."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..config import Config
from ..data import Dataset
from ..layers import SpikingLinear
from .data import EncodedSplit, ImageSplit, encode, epoch_order, mixed_seed
from .metrics import HiddenActivity, Score
from .policies import bump_silent, check_can_bump
from .run_log import RunDirectory, versions

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500


def train(config: Config, directory: RunDirectory, method: str = "eventprop") -> dict[str, Any]:
    """Train the network that ``config`` describes; return the summary that is also written to ``directory``.

    ``method`` is the name that the summary gives to the way gradients are computed.
    """
    torch.manual_seed(config.seed)
    dataset: Dataset = config.data()
    dtype = getattr(torch, config.train.dtype)
    splits = {
        name: encode(split, config.encoder, dtype, config.train.device, config.seed)
        for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))
        if split is not None
    }
    sizes = {name: len(split) for name, split in splits.items()}
    training = splits.pop("train")
    log.info("%s from %s: %s", dataset.name, dataset.source, ", ".join(f"{name} {n}" for name, n in sizes.items()))

    network = config.model(
        training.num_inputs, dataset.num_classes, config.loss, config.neuron, config.solver,
        device=config.train.device, dtype=dtype,
    )  # fmt: skip
    log.info("%s", network)
    check_can_bump(config.train.silent, network)
    optimizer = config.optimizer.build(network.parameters())
    scheduler = config.optimizer.schedule(optimizer, config.train.epochs)

    begin, seconds, metrics = time.perf_counter(), [], {}
    if (state := directory.resumed) is not None:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        seconds, metrics = state["seconds"], state["metrics"]
        begin -= state["train_seconds"]
        log.info("resuming after epoch %d", len(seconds))
    for epoch in range(len(seconds), config.train.epochs):
        epoch_begin = time.perf_counter()
        metrics = {"epoch": epoch + 1, "learning_rate": scheduler.get_last_lr()[0]}
        metrics |= train_epoch(config, network, optimizer, training, epoch)
        scheduler.step()
        seconds.append(time.perf_counter() - epoch_begin)
        for name, split in splits.items():
            metrics |= evaluate(config, network, split, name)
        metrics["seconds"] = seconds[-1]
        directory.epoch(metrics)
        directory.checkpoint(
            {"epoch": epoch + 1, "model": network.state_dict(), "optimizer": optimizer.state_dict(),
             "scheduler": scheduler.state_dict(), "seconds": seconds, "metrics": metrics,
             "train_seconds": time.perf_counter() - begin}
        )  # fmt: skip
        log.info(
            "epoch %d/%d  train loss %.4f accuracy %.2f %%  test loss %.4f accuracy %.2f %%  hidden spikes %.1f  %.1f s",
            epoch + 1, config.train.epochs, metrics["train_loss"], 100 * metrics["train_accuracy"],
            metrics["test_loss"], 100 * metrics["test_accuracy"], metrics["hidden_spikes_per_sample"], seconds[-1],
        )  # fmt: skip

    summary = {
        "experiment": config.experiment,
        "method": method,
        **{key: value for key, value in metrics.items() if key.endswith(("_accuracy", "_loss"))},
        "epochs": config.train.epochs,
        "seed": config.seed,
        "train_seconds": time.perf_counter() - begin,
        "seconds_per_epoch": seconds,
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
    directory.summary(summary)
    return summary


def train_epoch(
    config: Config,
    network: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    data: EncodedSplit | ImageSplit,
    epoch: int,
) -> dict[str, float]:
    """One pass over the training data: a gradient step per batch."""
    network.train()
    torch.manual_seed(mixed_seed(config.seed, epoch + 1))  # for dropout: an epoch is the same after a resume
    score, activity = Score(), HiddenActivity(network)
    batches = data.batches(config.train.batch_size, epoch_order(len(data), config.seed, epoch), epoch + 1)
    total = -(-len(data) // config.train.batch_size)
    bar = config.logger.progress == "bar" or (config.logger.progress == "auto" and sys.stderr.isatty())
    with activity:
        for inputs, target in tqdm(batches, f"epoch {epoch + 1}", total, leave=False, disable=not bar):
            with config.train.autocast():
                output = network(inputs)
            loss = config.loss(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            score.add(loss, config.loss.predict(output), target)
    metrics = score.summary("train") | activity.summary()
    if config.train.silent == "bump":
        metrics["bumped_neurons"] = sum(
            bump_silent(layer, silent, config.train.bump)
            for layer, silent in zip(activity.layers, activity.silent(), strict=True)
            if isinstance(layer, SpikingLinear)
        )
    return metrics


@torch.no_grad()
def evaluate(
    config: Config, network: nn.Sequential, data: EncodedSplit | ImageSplit, name: str = "test"
) -> dict[str, float]:
    """Loss and accuracy on ``data``, under names that begin with ``name``."""
    network.eval()
    score = Score()
    for inputs, target in data.batches(EVALUATION_BATCH):
        with config.train.autocast():
            output = network(inputs)
        score.add(config.loss(output, target), config.loss.predict(output), target)
    return score.summary(name)
