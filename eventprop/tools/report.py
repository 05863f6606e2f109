"""``report``: what each layer of a network does with a batch, and what to do where nothing can be learned.

A neuron that never fires has no gradient, and a spike that grazes the threshold one that is far too large; the loss shows
neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingModule
from eventprop.layers.readout import LeakyReadout

from .advice import on_arrivals, on_gradients, on_spikes
from .rows import GradientRow, LayerRow, ReadoutRow


@dataclass(frozen=True)
class Report:
    """The outcome of ``report``; printed, it is a table.

    Attributes:
        layers: one row for the input, if that is ``Spikes``, and for each module that returns spikes.
        readouts: one row for each ``LeakyReadout``.
        loss: None without a loss.
        gradients: one row for each parameter that learns; none without a loss.
        advice: one line for each thing that keeps the network from learning; empty where nothing is wrong.
    """

    layers: tuple[LayerRow, ...] = ()
    readouts: tuple[ReadoutRow, ...] = ()
    loss: float | None = None
    gradients: tuple[GradientRow, ...] = ()
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        layers = [
            (f"{row.name} {row.kind}", str(row.neurons), f"{row.spikes:.3g}", f"{row.silent:.0%}", f"{row.empty:.0%}",
             _or_dash(row.smallest_slope, ".2g"), _or_dash(row.grazing, ".1%"))
            for row in self.layers
        ]  # fmt: skip
        header = ("layer", "neurons", "spikes each", "silent", "empty samples", "least slope", "grazing")
        lines = _aligned(header, *layers)
        lines += [
            f"{row.name} {row.kind}: potentials from {row.lowest:.3g} to {row.highest:.3g}" for row in self.readouts
        ]
        if self.loss is not None:
            norms = [(row.name, f"{row.gradient:.3g}", f"{row.parameter:.3g}") for row in self.gradients]
            lines += ["", f"loss {self.loss:.4g}", *_aligned(("norms", "gradient", "parameter"), *norms)]
        return "\n".join([*lines, "", *(f"- {line}" for line in self.advice or ("nothing to do",))])


def report(network: nn.Module, spikes: Any, loss: Callable[[Any], Tensor] | None = None) -> Report:
    """Run ``network`` on a batch, and tell layer by layer what it does and what to do.

    The network stays as it is: parameters, their ``grad``, buffers, and torch's random generators.

    Args:
        network: holds layers of this package or of ``surrogate_baseline``.
        spikes: a batch of what it takes; of some dozen samples, since silent is a neuron that none of them makes fire.
        loss: of what the network returns, to see gradients too, e.g. ``lambda out: cross_entropy(out, target)``.

    Raises:
        ValueError: if the batch is empty, or the loss is not one number.

    >>> from eventprop import EventDriven, SpikingLinear
    >>> layer = SpikingLinear(2, 3, solver=EventDriven(t_end=40.0))
    >>> _ = nn.init.constant_(layer.weight, 0.1)
    >>> report(layer, Spikes.from_times(torch.tensor([[1.0, 2.0]]))).layers[1].silent
    1.0
    """
    if isinstance(spikes, Spikes) and not len(spikes):
        raise ValueError("spikes must hold at least one sample, got an empty batch")
    held = [*network.named_parameters(), *network.named_buffers()]
    broken = [name for name, value in held if not value.isfinite().all()]
    if broken:
        way_out = "go back to an earlier state of the network, and lower the learning rate"
        return Report(advice=(f"{', '.join(broken)}: NaN or infinite; {way_out}",))
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), _buffers_restored(network):
        return _report(network, spikes, loss)


def _report(network: nn.Module, spikes: Any, loss: Callable[[Any], Tensor] | None) -> Report:
    with _recorded(network) as calls, torch.set_grad_enabled(loss is not None):
        output = network(spikes)
        value = None if loss is None else loss(output)
    gradients = () if value is None else _gradients(value, network)
    layers: list[LayerRow] = []
    readouts: list[ReadoutRow] = []
    advice: list[str] = []
    if isinstance(spikes, Spikes):
        layers.append(_layer_row("input", spikes, spikes))
    for call in calls:
        advice += on_arrivals(call.label, call.module, call.arrivals)
        if isinstance(call.module, LeakyReadout):
            low, high = (float(bound) for bound in call.output.detach().aminmax())
            readouts.append(ReadoutRow(call.name, "LeakyReadout", low, high))
        else:
            layers.append(_layer_row(call.name, call.module, call.output))
            if isinstance(call.module, SpikingModule):
                last = call.output is output
                advice += on_spikes(call.label, call.module, call.arrivals, layers[-1], last)
    if value is not None:
        advice += on_gradients(value, gradients, layers)
    number = None if value is None else value.item()
    return Report(tuple(layers), tuple(readouts), number, gradients, tuple(advice))


@contextmanager
def _buffers_restored(network: nn.Module) -> Iterator[None]:
    """Work on copies of the buffers, such as those that a spectral norm changes whenever its weight is looked at."""
    kept = [
        (module, name, buffer) for module in network.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


class _Call(NamedTuple):
    name: str
    module: nn.Module
    arrivals: Any
    output: Any

    @property
    def label(self) -> str:
        return f"{self.name} {type(self.module).__name__}".strip()


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[_Call]]:
    """The calls of modules that return spikes, and of readouts. What a container returns is what a part of it did."""
    calls: list[_Call] = []

    def record(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        spiking = isinstance(output, Spikes) or (isinstance(module, SpikingModule) and isinstance(output, Tensor))
        if (spiking or isinstance(module, LeakyReadout)) and all(output is not call.output for call in calls):
            calls.append(_Call(name, module, args[0] if args else None, output))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            handle = module.register_forward_hook(lambda *call, name=name: record(name, *call))
            hooks.callback(handle.remove)
        yield calls


def _layer_row(name: str, module: object, output: Spikes | Tensor) -> LayerRow:
    solver, slope, grazing = getattr(module, "solver", None), None, None
    if isinstance(output, Spikes):
        counts = output.count()
        if output.slope is not None and counts.any():
            slopes = output.slope.detach()[output.index >= 0]
            slope = float(slopes.min())
            if solver is not None and not hasattr(solver, "surrogate"):  # surrogate gradients divide by no slope
                grazing = float((slopes < solver.min_slope).double().mean())
    else:
        counts = output.detach().sum(0).flatten(1)  # of a raster [T, B, ...]
    return LayerRow(
        name, type(module).__name__, counts.shape[1], float(counts.double().mean()),
        float((counts.sum(0) == 0).double().mean()), float((counts.sum(1) == 0).double().mean()), slope, grazing,
    )  # fmt: skip


def _gradients(loss: Tensor, network: nn.Module) -> tuple[GradientRow, ...]:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError("loss must return a tensor with one element; reduce it with .sum() or .mean()")
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    found: tuple[Tensor | None, ...] = (None,) * len(learned)
    if learned and loss.requires_grad:
        found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    return tuple(
        GradientRow(name, 0.0 if gradient is None else float(gradient.norm()), float(parameter.detach().norm()))
        for (name, parameter), gradient in zip(learned.items(), found, strict=True)
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _aligned(*rows: tuple[str, ...]) -> list[str]:
    """Lines of columns; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
