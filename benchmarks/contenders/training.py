"""The training loop of the package: whole epochs, with all that it measures and checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir

from eventprop.data import Split
from eventprop.training import config as exact
from eventprop.training.loop import train_epoch
from eventprop.training.task import build_network, encoded
from surrogate_baseline import config as surrogate

from . import Job
from .event_driven import trained_adam

NOT_EQUAL = "epochs of the training loop"
PACKAGES = ("eventprop",)
# the main configuration, the experiment, and the samples of an epoch: of slow ones, a part of the data
EPOCHS = {
    "mnist_gray": ("config", "mnist_gray", 60_000),
    "mnist_gray, surrogate": ("surrogate", "mnist_gray", 3_200),
    "mnist_conv": ("config", "mnist_conv", 640),
    "mnist_csnn": ("surrogate", "mnist_csnn", 640),
}


def training_step(job: Job, variant: str) -> Callable[[int], float]:
    main, experiment, samples = EPOCHS[variant]
    with initialize_config_dir(exact.CONFIG_DIRECTORY, version_base="1.3"):
        composed = compose(main, [f"+experiment={experiment}", "logger.progress=lines"])
    config = (exact if main == "config" else surrogate).parse(composed)
    torch.manual_seed(job.seed)
    dataset = config.data()
    data = encoded(config, Split(dataset.train.images[:samples], dataset.train.labels[:samples]))
    network = build_network(config, data.num_inputs, dataset.num_classes)
    if experiment == "mnist_gray":  # the same work as the steps of the other contenders
        for parameter, weight in zip(network.parameters(), job.weights, strict=True):
            parameter.data.copy_(torch.from_numpy(weight).t())
        optimizer = trained_adam(network, job)
    else:
        optimizer = config.optimizer.build(network.parameters())

    def epoch(k: int) -> float:
        return train_epoch(config, network, optimizer, data, k)["train_loss"]

    epoch.steps = -(-samples // config.train.batch_size)  # type: ignore[attr-defined]  # PEP 232
    return epoch
