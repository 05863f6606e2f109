"""What a configuration describes: the data, as batches, and the network that learns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eventprop.data import Dataset, Split

from .config import Config, mistakes_in
from .data import EncodedSplit, ImageSplit, encode


@dataclass(frozen=True, eq=False)
class Task:
    """The data of a run.

    Attributes:
        training: what to learn from.
        evaluation: by name, what to measure the network on: "test", and "validation" where the data set has it.
    """

    dataset: Dataset
    training: EncodedSplit | ImageSplit
    evaluation: dict[str, EncodedSplit | ImageSplit]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of samples of each split."""
        return {name: len(split) for name, split in {"train": self.training, **self.evaluation}.items()}

    def description(self) -> dict[str, Any]:
        """Which data these are, and what it takes to build the network again without them."""
        return {
            "dataset": self.dataset.name,
            "sizes": self.sizes,
            "sample_shape": list(self.dataset.test.images.shape[1:]),
            "num_inputs": self.training.num_inputs,
            "num_classes": self.dataset.num_classes,
        }

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {n}" for name, n in self.sizes.items())
        return f"{self.dataset.name} from {self.dataset.source}: {sizes}"


def load_task(config: Config) -> Task:
    """The data set that ``config`` describes, encoded."""
    dataset = load_data(config)
    splits = {"validation": dataset.validation, "test": dataset.test}
    return Task(
        dataset,
        encoded(config, dataset.train),
        {name: encoded(config, split) for name, split in splits.items() if split is not None},
    )


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
