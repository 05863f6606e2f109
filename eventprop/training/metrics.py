"""What is measured during an epoch."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from ..convolution import SpikingConv2d
from ..layers import SpikingLayer, SpikingLinear, SpikingModule
from ..spikes import Spikes


class HiddenActivity:
    """Counts the spikes of the hidden layers while it is entered; forward passes stay as they are.

    A hidden layer is any that spikes but the last module. Its grazing spikes are those that crossed the threshold with a
    slope below the solver's ``min_slope``.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self.layers = [layer for layer in list(network)[:-1] if isinstance(layer, SpikingModule)]

    def __enter__(self) -> HiddenActivity:
        self.samples, self.grazing = 0, torch.tensor(0)
        self.counts = [torch.zeros(1, dtype=torch.int64) for _ in self.layers]  # of neuron 0, neuron 1, ...
        self._hooks = [layer.register_forward_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _record(self, layer: nn.Module, _: tuple, output: Spikes | Tensor) -> None:
        assert isinstance(layer, SpikingModule)
        k = self.layers.index(layer)
        if isinstance(output, Spikes):
            samples = output.batch_size
            spikes = torch.bincount((output.index + 1).flatten().cpu(), minlength=output.num_neurons + 1)[1:]
            if isinstance(layer, (SpikingConv2d, SpikingLayer, SpikingLinear)) and output.slope is not None:
                self.grazing = self.grazing + (output.slope < layer.solver.min_slope).sum().cpu()
        else:  # a raster [T, B, ...]
            samples = output.shape[1]
            spikes = output.detach().sum((0, 1)).flatten().long().cpu()
        self.samples += samples if k == 0 else 0
        self.counts[k] = self.counts[k] + spikes

    def silent(self) -> list[Tensor]:
        """For each hidden layer, [N] which neurons have not fired at all."""
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


class Score:
    """Mean loss and accuracy over the samples seen."""

    def __init__(self) -> None:
        self.samples, self.loss, self.correct = 0, torch.tensor(0.0, dtype=torch.float64), torch.tensor(0)

    def add(self, loss: Tensor, prediction: Tensor, target: Tensor) -> None:
        self.samples += len(target)
        self.loss += loss.detach().cpu() * len(target)
        self.correct += (prediction == target).sum().cpu()

    def summary(self, prefix: str) -> dict[str, float]:
        samples = max(self.samples, 1)
        return {f"{prefix}_loss": float(self.loss) / samples, f"{prefix}_accuracy": int(self.correct) / samples}
