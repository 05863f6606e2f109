"""Networks as training leaves them, for benchmarks that depend on how active a network is."""

from __future__ import annotations

import torch
from hydra import compose, initialize_config_dir

from eventprop.data import Dataset
from eventprop.training.config import CONFIG_DIRECTORY, Config, parse
from eventprop.training.loop import train_epoch
from eventprop.training.task import build_network, encoded


def trained(experiment: str, *overrides: str) -> tuple[Config, torch.nn.Sequential, Dataset, torch.optim.Optimizer]:
    """The network of an experiment after its training, with its configuration, data and optimizer."""
    with initialize_config_dir(CONFIG_DIRECTORY, version_base="1.3"):
        config = parse(compose("config", [f"+experiment={experiment}", "logger.progress=lines", *overrides]))
    torch.manual_seed(config.seed)
    dataset = config.data()
    data = encoded(config, dataset.train)
    network = build_network(config, data.num_inputs, dataset.num_classes)
    optimizer = config.optimizer.build(network.parameters())
    scheduler = config.optimizer.schedule(optimizer, config.train.epochs)
    for epoch in range(config.train.epochs):
        train_epoch(config, network, optimizer, data, epoch)
        scheduler.step()
    return config, network, dataset, optimizer
