"""What TensorBoard shows of a run: its metrics, spike rasters of some test samples, and maps of the first layer's weights."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes
from eventprop.data import Dataset
from eventprop.layers.linear import SpikingModule

from .config import Config, ConfigError
from .run_log import RunDirectory
from .task import Task

SAMPLES, MAPS = 4, 64  # rasters, and weight maps, at most
BINS = 200  # of time in a raster


def tensorboard_of(
    config: Config, task: Task, directory: RunDirectory | None, first_epoch: int
) -> contextlib.AbstractContextManager[TensorBoard | None]:
    """The ``TensorBoard`` of a run, if one is wanted; closed behind the last epoch."""
    if directory is None or not config.logger.tensorboard:
        return contextlib.nullcontext()
    shown: Any = next(iter(task.evaluation["test"].batches(SAMPLES)))[0]
    return contextlib.closing(TensorBoard(directory.path / "tensorboard", task.dataset, shown, first_epoch))


class TensorBoard:
    """Writes to ``path`` after each epoch.

    Args:
        path: of the directory for TensorBoard.
        dataset, inputs: the data set, and its first ``SAMPLES`` test samples, encoded.
        first_epoch: that follows; what a stopped run has logged of it and later ones is replaced.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self, path: Path, dataset: Dataset, inputs: Spikes | Tensor, first_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logger.tensorboard=true needs TensorBoard; install it with pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(path), purge_step=first_epoch)
        self._inputs, self._shape = inputs, tuple(dataset.test.images.shape[1:])

    @torch.no_grad()
    def epoch(self, network: nn.Sequential, metrics: dict[str, Any]) -> None:
        """Log the metrics of an epoch and what the network looks like after it."""
        step = metrics["epoch"]
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, step)
        network.eval()
        values: Any = self._inputs
        for k, module in enumerate(network):
            values = module(values)
            if isinstance(module, SpikingModule) and isinstance(values, Spikes):
                self._writer.add_images(f"spikes/layer {k}", raster_images(values), step)
        weight = next((module.weight for module in network if hasattr(module, "weight")), None)
        if isinstance(weight, Tensor) and len(self._shape) == 2 and weight[0].numel() == math.prod(self._shape):
            self._writer.add_images("weights of the first layer", weight_maps(weight, self._shape), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def raster_images(spikes: Spikes) -> Tensor:
    """[B, 1, N, ``BINS``] in [0, 1]: a row for each neuron, time from left to right up to the last spike, spikes bright."""
    rows, neurons = spikes.batch_size, spikes.num_neurons
    image = torch.zeros(rows, neurons, BINS)
    fired = (spikes.index >= 0).cpu()
    if fired.any():
        time, index = spikes.time.cpu(), spikes.index.cpu().long()
        begin, end = (bound.item() for bound in time[fired].aminmax())
        place = ((time - begin) / max(end - begin, 1e-9) * (BINS - 1)).nan_to_num(0.0, 0.0, 0.0).long()
        row = torch.arange(rows)[:, None].expand_as(index)
        image[row[fired], index[fired], place[fired]] = 1.0
    return image[:, None]


def weight_maps(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[n, 3, *shape] in [0, 1]: red for excitation, blue for inhibition, white for 0, of the first ``MAPS`` neurons."""
    maps = weight[:MAPS].reshape(-1, *shape).detach().float().cpu()
    maps = maps / maps.abs().max().clamp(min=1e-9)
    red, blue = (1.0 - (-maps).clamp(min=0.0)), (1.0 - maps.clamp(min=0.0))
    return torch.stack([red, torch.minimum(red, blue), blue], dim=1)
