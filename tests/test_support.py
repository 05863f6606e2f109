"""Which solver solves what is decided in one place: errors, and the table of the documentation, read what solvers declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import random_spikes
from torch import nn

from eventprop import (
    DelayedSpikingLinear,
    EventDriven,
    LeakyReadout,
    LearnableLIF,
    Spikes,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    silent_margin,
)  # fmt: skip
from eventprop.solvers.problem import Problem
from eventprop.solvers.solver import Solver
from eventprop.solvers.support import EVERYWHERE, Kind, Support, UnsupportedError, table
from surrogate_baseline.solver import SurrogateGradient, SurrogateTimeStepped


@dataclass(frozen=True)
class FirstSpikes(Solver):
    """The first spike of each neuron, of layers of the plainest kind alone."""

    variants: ClassVar[Mapping[str, Support]] = {"FirstSpikes": {Kind(): EVERYWHERE}}

    t_end: float
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"

    def spikes_of(self, problem: Problem, arrivals: Spikes) -> Spikes:
        return Spikes.from_times(EventDriven(self.t_end).spikes_of(problem, arrivals).first_spike_time())


LAYERS = {
    Kind(): lambda solver: SpikingLinear(4, 3, solver=solver),
    Kind(neurons="LearnableLIF"): lambda solver: SpikingLinear(4, 3, solver=solver, neuron=LearnableLIF(3)),
    Kind(recurrence="delayed"): lambda solver: SpikingRecurrent(4, 3, solver=solver, delay=1.0),
    Kind(recurrence="delayed", neurons="LearnableLIF"): lambda solver: SpikingRecurrent(
        4, 3, solver=solver, delay=1.0, neuron=LearnableLIF(3)
    ),
    Kind(recurrence="instant"): lambda solver: SpikingRecurrent(4, 3, solver=solver, delay=0.0),
    Kind(recurrence="instant", neurons="LearnableLIF"): lambda solver: SpikingRecurrent(
        4, 3, solver=solver, delay=0.0, neuron=LearnableLIF(3)
    ),
    Kind("delayed"): lambda solver: DelayedSpikingLinear(4, 3, solver=solver),
    Kind("delayed", neurons="LearnableLIF"): lambda solver: DelayedSpikingLinear(
        4, 3, solver=solver, neuron=LearnableLIF(3)
    ),
    Kind("convolution"): lambda solver: SpikingConv2d(1, 3, 2, solver=solver),
    Kind("convolution", neurons="LearnableLIF"): lambda solver: SpikingConv2d(
        1, 3, 2, solver=solver, neuron=LearnableLIF(3)
    ),
    Kind("linear map"): lambda solver: SpikingLayer(nn.Linear(4, 3, bias=False), solver=solver),
    Kind("linear map", neurons="LearnableLIF"): lambda solver: SpikingLayer(
        nn.Linear(4, 3, bias=False), solver=solver, neuron=LearnableLIF(3)
    ),
    Kind(output="max or mean"): lambda solver: LeakyReadout(4, 3, solver=solver),
    Kind(output="max or mean", neurons="LearnableLIF"): lambda solver: LeakyReadout(
        4, 3, solver=solver, neuron=LearnableLIF(3)
    ),
    Kind(output="other readout"): lambda solver: LeakyReadout(4, 3, solver=solver, reduce="samples", times=[1.0]),
}
SOLVERS = [
    FirstSpikes(20.0), EventDriven(20.0), EventDriven(20.0, backend="torch"), TimeStepped(20.0, 1.0),
    TimeStepped(20.0, 1.0, scheme="euler"), TimeStepped(20.0, 1.0, backend="torch"), SurrogateTimeStepped(20.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", LAYERS, ids=str)
def test_a_layer_is_solved_or_refused_as_its_solver_declares(kind, solver):
    spikes = random_spikes(2, 4, dtype=torch.float32).reshape(1, 2, 2)
    backends = solver.supports.get(kind, ())
    if solver.backend_for(spikes.device) in backends:
        assert LAYERS[kind](solver).problem.kind(solver.step) == kind
        LAYERS[kind](solver)(spikes)
        return
    with pytest.raises(UnsupportedError) as error:
        LAYERS[kind](solver)(spikes)
    name = str(kind).replace("`", "")
    assert name in str(error.value)
    assert str(solver) in str(error.value) or f"with {solver.variant}, got 'torch' and cpu" in str(error.value)


def test_an_error_names_the_solvers_that_do():
    with pytest.raises(
        UnsupportedError, match="solver must be EventDriven or TimeStepped for DelayedSpikingLinear, got First"
    ):
        LAYERS[Kind("delayed")](FirstSpikes(20.0))(random_spikes(2, 4, dtype=torch.float32))
    with pytest.raises(
        UnsupportedError, match=r"for SpikingLinear, of LearnableLIF with EventDriven, got 'torch' and cpu; or use T"
    ):
        LAYERS[Kind(neurons="LearnableLIF")](EventDriven(20.0, backend="torch"))(
            random_spikes(2, 4, dtype=torch.float32)
        )
    layer, spikes = LAYERS[Kind("delayed")](EventDriven(20.0)), random_spikes(2, 4, dtype=torch.float32)
    with pytest.raises(
        UnsupportedError, match=r"no solver solves the potential \(max or mean\) of DelayedSpikingLinear"
    ):
        silent_margin(layer, spikes, layer(spikes))


def test_the_table_of_the_documentation_is_what_solvers_declare():
    variants = EventDriven.variants | TimeStepped.variants | {SurrogateGradient.name: SurrogateGradient.supports}
    expected = table(variants)
    assert expected in Path("docs/solvers.md").read_text(), f"docs/solvers.md must hold\n\n{expected}"
    assert table({"FirstSpikes": FirstSpikes(20.0).supports}).splitlines()[1:] == [
        "| --- | --- |",
        "| `SpikingLinear` | yes |",
    ]
