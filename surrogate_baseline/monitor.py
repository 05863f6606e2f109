"""A monitor of potentials and spikes, for plots."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingModule

from .neurons import IF
from .solver import RasterSpikes, SurrogateGradient


class Monitor:
    """Records what chosen layers do while it is entered. The network computes what it would without it.

    Args:
        network: holds the layers.
        layers: their names, as ``network.named_modules()`` has them; None for all layers that spike.

    Attributes:
        potential, spikes: for each layer name, [T, B, ...] arrays of the potential at the end of each step before the
            reset, and of the number of spikes in it. Batches that ran one after the other follow along B.

    Raises:
        ValueError: if a name is not that of a layer that spikes.
        TypeError: if a layer has no steps, because its solver is not one of the baseline's.

    >>> network = nn.Sequential(IF(v_th=2.5))
    >>> with Monitor(network) as monitor:
    ...     _ = network(torch.ones(4, 1, 1))
    >>> monitor.potential["0"].ravel().tolist()
    [1.0, 2.0, 3.0, 1.0]
    """

    def __init__(self, network: nn.Module, layers: list[str] | None = None) -> None:
        spiking = {name: module for name, module in network.named_modules() if isinstance(module, SpikingModule)}
        chosen = list(spiking) if layers is None else layers
        if unknown := [name for name in chosen if name not in spiking]:
            raise ValueError(f"layers must be among {list(spiking)}, got {unknown}")
        self._layers = {name: spiking[name] for name in chosen}
        for name, layer in self._layers.items():
            if not (isinstance(layer, IF) or isinstance(getattr(layer.solver, "rule", None), SurrogateGradient)):
                raise TypeError(f"layer {name!r} must be an IF, an LIF or solved by SurrogateTimeStepped, got {layer}")
        self.potential: dict[str, np.ndarray] = {}
        self.spikes: dict[str, np.ndarray] = {}

    def __enter__(self) -> Monitor:
        self.potential, self.spikes = {}, {}
        self._hooks = [
            layer.register_forward_hook(
                lambda layer, args, output, name=name: self._record(name, layer, args[0], output)
            )
            for name, layer in self._layers.items()
        ]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _record(self, name: str, layer: nn.Module, arrivals: Tensor | Spikes, output: Tensor | Spikes) -> None:
        if isinstance(layer, IF):
            assert isinstance(arrivals, Tensor)
            spikes, potential = layer.spikes_and_potential(arrivals)
        else:
            assert isinstance(output, RasterSpikes)
            spikes, potential = output.raster, output.potential()
        for record, values in ((self.potential, potential), (self.spikes, spikes)):
            array = values.cpu().numpy()
            record[name] = np.concatenate([record[name], array], axis=1) if name in record else array
