"""Neurons without threshold, whose potential is read out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eventprop.core.checks import choice, finite_exponential, positive
from eventprop.core.tensorlike import traced
from eventprop.solvers.problem import REDUCTIONS, Dense, Problem, Readout
from eventprop.solvers.solver import Solver

from .linear import _Synapses


class LeakyReadout(_Synapses):
    """Neurons without threshold behind fully connected synapses: maps spike trains to potentials.

    Args:
        in_features, out_features, neuron, solver, device, dtype: as for ``SpikingLinear``; ``v_th`` of the neuron only
            scales the initial weights.
        reduce: what the output is, always with the exact gradient of its closed form:

            - "max": [B, N] the maximum of the potential over time (rest, 0, included);
            - "mean": [B, N] its average over [0, t_end];
            - "weighted": [B, N] its average with weights exp(-t / ``tau_weight``), so that early times count more;
            - "samples": [B, S, N] its values at the ``times`` [S], for a loss of your own.
        tau_weight: in ms, for reduce="weighted".
        times: in ms, for reduce="samples".
        learn_tau: learn the two time constants, one pair for the layer; they stay positive, since the parameters
            ``log_tau_mem`` and ``log_tau_syn`` are their logarithms.

    >>> from eventprop import EventDriven, Spikes
    >>> readout = LeakyReadout(2, 3, solver=EventDriven(40.0), reduce="samples", times=[10.0, 20.0])
    >>> readout(Spikes.from_times(torch.tensor([[1.0, 2.0]]))).shape
    torch.Size([1, 2, 3])
    """

    times: Tensor | None
    log_tau_mem: Tensor
    log_tau_syn: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        solver: Solver,
        reduce: str = "max",
        tau_weight: float | None = None,
        times: Sequence[float] | Tensor | None = None,
        learn_tau: bool = False,
        **synapses,
    ) -> None:
        choice("reduce", reduce, (*REDUCTIONS, "weighted", "samples"))
        for name, value, needed in (("tau_weight", tau_weight, "weighted"), ("times", times, "samples")):
            if (value is not None) != (reduce == needed):
                raise ValueError(
                    f"{name} must be given with reduce={needed!r}, and only then; got {value} with {reduce!r}"
                )
        super().__init__(in_features, out_features, solver=solver, **synapses)
        self.reduce, self.learn_tau = reduce, learn_tau
        self.tau_weight = None if tau_weight is None else positive("tau_weight", tau_weight)
        self._times = None if times is None else _row("times", times, solver.t_end)
        self.register_buffer("times", None if self._times is None else self.weight.new_empty(len(self._times)))
        for name in ("tau_mem", "tau_syn") if learn_tau else ():
            self.register_parameter(f"log_{name}", nn.Parameter(self.weight.new_empty(())))
        self._set_constants()
        solver.check(self.problem)

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does; ``times`` and time constants become what the constructor
        was given."""
        super().reset_parameters(mean, std)
        if "times" in self._buffers:  # not yet, while the constructor of all synapses draws the weights
            self._set_constants()

    @torch.no_grad()
    def _set_constants(self) -> None:
        if self.times is not None:
            self.times.copy_(torch.tensor(self._times, dtype=torch.float64, device="cpu"))
        for name in ("tau_mem", "tau_syn") if self.learn_tau else ():
            nn.init.constant_(getattr(self, f"log_{name}"), math.log(getattr(self.neuron, name)))

    @property
    def problem(self) -> Problem:
        if self.times is not None and not traced(self.times):  # others may have been assigned or loaded
            _row("times", self.times, self.solver.t_end)
        tau = None
        if self.learn_tau:
            for name in ("log_tau_mem", "log_tau_syn"):
                finite_exponential(f"LeakyReadout.{name}", getattr(self, name))
            tau = self.log_tau_mem.exp(), self.log_tau_syn.exp()
        return Problem(Dense(self.weight), self.neuron, readout=Readout(self.reduce, self.tau_weight, self.times, tau))

    def extra_repr(self) -> str:
        options = [f"reduce={self.reduce!r}"]
        options += [] if self.tau_weight is None else [f"tau_weight={self.tau_weight}"]
        options += ["learn_tau=True"] if self.learn_tau else []
        return ", ".join([super().extra_repr(), *options])


def _row(name: str, values: Sequence[float] | Tensor, t_end: float) -> list[float]:
    """The numbers in ``values``, all of which lie in [0, ``t_end``]."""
    if isinstance(values, Tensor) and values.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the meta device; give a list of numbers")
    row = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if row.dim() != 1:
        raise ValueError(f"{name} must be a row of numbers, got shape {list(row.shape)}")
    if not ((row >= 0) & (row <= t_end)).all():
        raise ValueError(f"{name} must lie in [0, t_end={t_end}], got {row.tolist()}")
    return row.tolist()
