"""What is measured during an epoch."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes
from eventprop.layers.convolution import SpikingConv2d
from eventprop.layers.linear import SpikingLinear, SpikingModule
from eventprop.layers.linear_map import SpikingLayer

TOGETHER = 2**18  # entries of outputs that wait to be counted, a few MB


class HiddenActivity:
    """Counts the spikes of the hidden layers while it is entered; forward passes stay as they are.

    A hidden layer is any that spikes but the last module. Its grazing spikes are those that crossed the threshold with a
    slope below the solver's ``min_slope``. The spikes of many steps are counted together: for those of one, the calls of torch
    would take longer than the counting, and a GPU would have to wait.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self.layers = [layer for layer in list(network)[:-1] if isinstance(layer, SpikingModule)]
        self.samples, self.grazing = 0, torch.tensor(0)
        self.counts = [torch.zeros(1, dtype=torch.int64) for _ in self.layers]  # of neuron 0, neuron 1, ...
        self._uncounted: list[tuple[int, Spikes | Tensor]] = []  # by number of the layer
        self._waiting = 0  # entries of these

    def __enter__(self) -> HiddenActivity:
        self._hooks = [layer.register_forward_hook(partial(self._record, k)) for k, layer in enumerate(self.layers)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self.count()

    def _record(self, k: int, layer: nn.Module, _: tuple, output: Spikes | Tensor) -> None:
        if k == 0:
            self.samples += output.batch_size if isinstance(output, Spikes) else output.shape[1]
        self._uncounted.append((k, output.detach()))
        self._waiting += (output.index if isinstance(output, Spikes) else output).numel()
        if self._waiting >= TOGETHER:
            self.count()

    def count(self) -> None:
        """Count what has been recorded and not been counted yet."""
        for k, layer in enumerate(self.layers):
            outputs = [output for number, output in self._uncounted if number == k]
            trains = [output for output in outputs if isinstance(output, Spikes)]
            rasters = [output for output in outputs if isinstance(output, Tensor)]
            if trains:
                neuron = torch.cat([train.index.flatten() for train in trains]) + 1  # 0 for padding
                counts = torch.bincount(neuron, minlength=trains[0].num_neurons + 1)[1:]
                self.counts[k] = self.counts[k] + counts.cpu()
            for raster in rasters:  # [T, B, ...]
                self.counts[k] = self.counts[k] + raster.sum((0, 1)).flatten().long().cpu()
            slopes = [train.slope.flatten() for train in trains if train.slope is not None]
            if slopes and isinstance(layer, (SpikingConv2d, SpikingLayer, SpikingLinear)):
                self.grazing = self.grazing + (torch.cat(slopes) < layer.solver.min_slope).sum().cpu()
        self._uncounted, self._waiting = [], 0

    def state_dict(self) -> dict[str, Any]:
        self.count()
        return {"samples": self.samples, "grazing": self.grazing, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.grazing, self.counts = state["samples"], state["grazing"], state["counts"]

    def silent(self) -> list[Tensor]:
        """For each hidden layer, [N] which neurons have not fired at all."""
        self.count()
        return [count == 0 for count in self.counts]

    def summary(self) -> dict[str, float]:
        """Hidden and grazing spikes per sample, and the share of hidden neurons that have not fired at all."""
        silent = torch.cat([*self.silent(), torch.zeros(0, dtype=torch.bool)])
        samples = max(self.samples, 1)
        return {
            "hidden_spikes_per_sample": sum(int(count.sum()) for count in self.counts) / samples,
            "silent_fraction": float(silent.float().mean()) if len(silent) else 0.0,
            "grazing_spikes_per_sample": int(self.grazing) / samples,
        }


class Progress:
    """How far an epoch has come: the steps that are done, and what was measured in them."""

    def __init__(self, network: nn.Sequential) -> None:
        self.step, self.score, self.activity = 0, Score(), HiddenActivity(network)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "score": self.score.state_dict(), "activity": self.activity.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.score.load_state_dict(state["score"])
        self.activity.load_state_dict(state["activity"])


class Score:
    """Mean loss and accuracy over the samples seen."""

    def __init__(self) -> None:
        self.samples, self.loss, self.correct = 0, torch.tensor(0.0, dtype=torch.float64), torch.tensor(0)

    def add(self, loss: Tensor, prediction: Tensor, target: Tensor) -> None:
        self.samples += len(target)
        self.loss = self.loss + loss.detach() * len(target)  # on a GPU, which no one waits for
        self.correct = self.correct + (prediction == target).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "loss": self.loss, "correct": self.correct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.loss, self.correct = state["samples"], state["loss"], state["correct"]

    def summary(self, prefix: str) -> dict[str, float]:
        samples = max(self.samples, 1)
        return {f"{prefix}_loss": float(self.loss) / samples, f"{prefix}_accuracy": int(self.correct) / samples}
