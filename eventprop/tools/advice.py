"""What keeps a network from learning, and the way out: the rules by which ``report`` gives advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from eventprop.core.learnable import LearnableLIF
from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes

from .rows import GradientRow, LayerRow

MOSTLY = 0.9  # networks that are just initialised have at least half of their neurons firing
WEAK = 3.0  # weights that are weaker than initial ones by this factor hardly fire a neuron
GRAZING = 0.01  # of the spikes; fresh networks have about 0.001
HUGE = 10.0  # times the norm of the parameter: nobody wants to take such a step

_CLAMP = "choose another solver.grazing: 'clamp', 'saturate' or 'drop'"


def on_arrivals(label: str, module: Any, arrivals: Any) -> Iterator[str]:
    """About the input of a layer or a readout."""
    solver = getattr(module, "solver", None)
    if solver is not None and isinstance(arrivals, Spikes) and arrivals.count().any():
        late = float((arrivals.time[arrivals.index >= 0] > solver.t_end).double().mean())
        if late > 1.0 - MOSTLY:  # a few are normal behind delays
            found = f"{late:.0%} of its input comes after t_end={solver.t_end}, without effect"
            yield f"{label}: {found}; encode it earlier, or raise t_end"


def on_spikes(label: str, module: Any, arrivals: Any, row: LayerRow, last: bool) -> Iterator[str]:
    """About the spikes of a layer."""
    if row.silent >= MOSTLY:
        found = f"{row.silent:.0%} of its neurons are silent, and silence has no exact gradient"
        yield f"{label}: {found}; {_louder(module, arrivals)}"
    elif last and row.empty > 0.5:
        yield (
            f"{label}: in {row.empty:.0%} of the samples no output neuron fires, and losses on first spikes have no gradient "
            f"there; raise the weights, or add losses.silent_margin to the loss"
        )
    if row.spikes > _busy(module):
        yield (
            f"{label}: with {row.spikes:.3g} spikes of each neuron, the next layer receives a current that hardly changes; "
            f"lower the weights, or add losses.spike_count_penalty(high=...) to the loss"
        )
    if row.grazing is not None and row.grazing > GRAZING and module.solver.grazing == "raw":
        yield f"{label}: {row.grazing:.0%} of its spikes graze the threshold, with gradients that are far too large; {_CLAMP}"


def on_gradients(loss: Tensor, gradients: Sequence[GradientRow], layers: Sequence[LayerRow]) -> Iterator[str]:
    """About the loss and its gradient."""
    if not loss.isfinite().all():
        yield "the loss is NaN or infinite; the padding of spike times is +inf: select with index >= 0 before computing"
    if not loss.requires_grad:
        yield "the loss has no gradient; a number of spikes has none: losses.smooth_count has"
        return
    if broken := [row.name for row in gradients if not math.isfinite(row.gradient)]:
        yield f"the gradient of {', '.join(broken)} is NaN or infinite; 0 * inf, of padding or silent neurons, is NaN"
    if all(row.silent < MOSTLY for row in layers) and (idle := [row.name for row in gradients if row.gradient == 0]):
        yield f"the gradient of {', '.join(idle)} is 0, though neurons fire; the loss does not depend on it"
    huge = [row.name for row in gradients if row.gradient > HUGE * row.parameter]
    if huge and any(row.grazing for row in layers):
        yield f"the gradient of {', '.join(huge)} is huge, and there are spikes that graze the threshold; {_CLAMP}"


def _louder(module: Any, arrivals: Any) -> str:
    """What makes silent neurons fire."""
    neuron = getattr(module, "neuron", None)
    weights = [part for part in module.modules() if isinstance(getattr(part, "weight", None), Tensor)]
    if not isinstance(neuron, (LIF, LearnableLIF)) or not weights:
        return "raise the weights in front of it, or lower its v_th"
    needed = neuron.minimum_weight
    for part in weights:
        weight = part.weight.detach()
        size, inputs = float(weight.square().mean().sqrt()), weight[0].numel()
        usual = needed * math.sqrt(4.0 / inputs + 0.25 / inputs**2)  # as reset_parameters() draws them
        factor = usual / size if size > 0 else math.inf
        if factor > WEAK:
            found = (
                f"its weights are about {size:.2g}, reset_parameters() draws about {usual:.2g}, and one spike alone needs "
                f"LIF.minimum_weight={needed:.2g}"
            )
            if "weight" in part._parameters:
                return f"{found}. Call reset_parameters(), or multiply the weights by {factor:.0f}"
            return f"{found}. A parametrisation fixes their size, so divide v_th and the solver's min_slope by {factor:.0f}"
    if isinstance(arrivals, Spikes) and not arrivals.count().any():
        return "it receives no spikes: look at what is in front of it"
    return "raise the weights, reset_parameters(mean=...), or add losses.silent_margin to the loss"


def _busy(module: Any) -> float:
    """Spikes of a neuron that are too many: one for each synaptic time constant."""
    neuron = getattr(module, "neuron", None)
    if not isinstance(neuron, (LIF, LearnableLIF)):
        return math.inf
    fixed = neuron.initial if isinstance(neuron, LearnableLIF) else neuron
    return max(1.0, float(module.solver.t_end) / fixed.tau_syn)
