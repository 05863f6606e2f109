"""Which solver solves what: every solver declares it here in one form, as data, and ``Solver.check`` and the table in
docs/solvers.md read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """What solvers tell problems apart by; the plainest one by default."""

    synapses: str = "dense"  # or "delayed", "convolution", "linear map"
    neurons: str = "LIF"  # or "LearnableLIF"
    recurrence: str = "none"  # or "delayed"; "instant": sooner than a step of the solver, or at once
    output: str = "spikes"  # or "max or mean", "other readout"

    def __str__(self) -> str:
        name = LAYERS.get(self._replace(neurons="LIF"))
        if name is None:
            name = f"the potential ({self.output}) of {self._replace(output='spikes', neurons='LIF')}"
        return name if self.neurons == "LIF" else f"{name}, of `LearnableLIF`"


LAYERS = {
    Kind(): "`SpikingLinear`",
    Kind(recurrence="delayed"): "`SpikingRecurrent`, delay of a step or more",
    Kind(recurrence="instant"): "`SpikingRecurrent`, delay below a step, or 0",
    Kind("delayed"): "`DelayedSpikingLinear`",
    Kind("convolution"): "`SpikingConv2d`",
    Kind("linear map"): "`SpikingLayer`",
    Kind(output="max or mean"): '`LeakyReadout`, reduce "max" or "mean"',
    Kind(output="other readout"): '`LeakyReadout`, reduce "weighted" or "samples", or `learn_tau`',
}

Support = Mapping[Kind, tuple[str, ...]]  # the backends that solve each kind
EVERYWHERE, CPU = ("numba", "torch"), ("numba",)
NAMES = {EVERYWHERE: "yes", CPU: "CPU", ("torch",): "in torch", (): "no"}


class UnsupportedError(TypeError, ValueError):
    """A solver does not solve what a layer asks. A TypeError, as of a wrong solver, and a ValueError, as of a wrong option."""


def table(variants: Mapping[str, Support]) -> str:
    """Markdown: a row for each kind that one of these solvers solves, a column for each solver."""
    rows = [kind._replace(neurons=neurons) for kind in LAYERS for neurons in ("LIF", "LearnableLIF")]
    cells = [[str(kind), *(NAMES[support.get(kind, ())] for support in variants.values())] for kind in rows]
    lines = [["layer", *(f"`{name}`" for name in variants)], ["---"] * (1 + len(variants))]
    lines += [row for row in cells if set(row[1:]) != {"no"}]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
