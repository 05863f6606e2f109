"""What ``report`` measures: a row for each layer, for each readout and for each parameter."""

from __future__ import annotations

from typing import NamedTuple


class LayerRow(NamedTuple):
    """What the spikes of one layer are like."""

    name: str
    kind: str
    neurons: int
    spikes: float  # per neuron and sample
    silent: float  # share of the neurons that do not fire in any sample
    empty: float  # share of the samples in which no neuron fires
    smallest_slope: float | None  # dV/dt at a spike in 1/ms; None where no spike has one
    grazing: float | None  # share of the spikes with a slope below the solver's min_slope


class ReadoutRow(NamedTuple):
    """The range of the potentials that a readout returns."""

    name: str
    kind: str
    lowest: float
    highest: float


class GradientRow(NamedTuple):
    """The norm of the gradient of a parameter, and of the parameter itself."""

    name: str
    gradient: float  # 0 where the loss does not depend on the parameter
    parameter: float
