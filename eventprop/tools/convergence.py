"""How the solver on a time grid approaches the event-driven one as its step gets shorter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eventprop.core.spikes import Spikes
from eventprop.solvers.event_driven import EventDriven
from eventprop.solvers.solver import Solver
from eventprop.solvers.time_stepped import TimeStepped

DTS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
ROUNDING = 1e-9  # an error below this is not one of the grid


@dataclass(frozen=True, eq=False)
class Convergence:
    """Errors of one scheme against the event-driven solver; every array has one entry for each step length ``dt``.

    Where a neuron emits a spike more or less than it should, the loss jumps, by an amount that does not shrink with dt, and
    that spike has no partner to compare its time with. So ``counts_changed`` tells how many samples have such a neuron, and
    the errors are given both over all samples and over those without one, NaN where there are none of them.

    Attributes:
        scheme: "exponential" or "euler".
        dt: in ms.
        spike_time_error: mean absolute error in ms of all spikes that have a partner, in every layer.
        loss_error: mean over samples of the absolute error of the loss.
        gradient_error: mean over samples of the norm of the error of dL/dparameters, relative to the mean norm.
        counts_changed: share of the samples in which some neuron emits more or fewer spikes than it should.
        loss_error_unchanged, gradient_error_unchanged: the same errors over the samples in which none does.
    """

    scheme: str
    dt: np.ndarray
    spike_time_error: np.ndarray
    loss_error: np.ndarray
    gradient_error: np.ndarray
    counts_changed: np.ndarray
    loss_error_unchanged: np.ndarray
    gradient_error_unchanged: np.ndarray

    def order(self, errors: np.ndarray) -> float:
        """The slope of log(errors) over log(dt): errors fall as dt to this power. NaN and what rounding has left are left out;
        NaN if no two errors remain."""
        known = errors > ROUNDING
        return float(np.polyfit(np.log(self.dt[known]), np.log(errors[known]), 1)[0]) if known.sum() > 1 else math.nan


def study_convergence(
    network: Callable[[Solver], nn.Sequential],
    arrivals: Spikes,
    target: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    *,
    t_end: float,
    dts: Sequence[float] = DTS,
    schemes: Sequence[str] = ("exponential", "euler"),
) -> list[Convergence]:
    """Solve one network with ``TimeStepped`` at each step length, and compare with ``EventDriven``.

    Args:
        network: builds the network in float64 for a solver, with the same weights each time.
        arrivals: [B] input samples, float64.
        target: [B] what ``loss`` takes beside the output.
        loss: of the output for one sample and its target, a scalar.
        t_end: end of the window in ms.
        dts: step lengths in ms.
        schemes: of ``TimeStepped``.

    Returns:
        One result for each scheme.
    """
    exact, grids = network(EventDriven(t_end)), [network(TimeStepped(t_end, dt, s)) for s in schemes for dt in dts]
    rows: list[list[_Sample]] = [[] for _ in grids]
    scale: list[float] = []  # norms of the exact gradients
    for b in range(arrivals.batch_size):
        sample = arrivals.select(torch.tensor([b])), target[b : b + 1], loss
        solution = _solve(exact, *sample)
        scale.append(float(solution.gradient.norm()))
        for row, grid in zip(rows, grids, strict=True):
            row.append(_compare(_solve(grid, *sample), solution))
    columns = [_errors(row, np.array(scale)) for row in rows]
    return [
        Convergence(scheme, np.array(dts), *np.array(columns[k * len(dts) : (k + 1) * len(dts)]).T)
        for k, scheme in enumerate(schemes)
    ]


class _Solution(NamedTuple):
    """Of one sample: the spike times [N, K] of each layer, the loss, and the gradient of all parameters."""

    times: list[Tensor]
    loss: float
    gradient: Tensor


class _Sample(NamedTuple):
    """How one sample differs from its exact solution."""

    time_errors: Tensor  # of all spikes that have a partner
    loss_error: float
    gradient_error: float
    changed: bool


def _solve(
    network: nn.Sequential, arrivals: Spikes, target: Tensor, loss: Callable[[Any, Tensor], Tensor]
) -> _Solution:
    signal: Any = arrivals
    times = []
    for layer in network:
        signal = layer(signal)
        if isinstance(signal, Spikes):
            times.append(signal.detach().to_times()[0])
    value = loss(signal, target)
    parts = torch.autograd.grad(value, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return _Solution(times, value.item(), torch.cat([part.flatten() for part in parts]))


def _compare(solution: _Solution, exact: _Solution) -> _Sample:
    differences, changed = [torch.zeros(0)], False
    for train, exact_train in zip(solution.times, exact.times, strict=True):
        pairs = min(train.shape[1], exact_train.shape[1])
        both = torch.isfinite(train[:, :pairs]) & torch.isfinite(exact_train[:, :pairs])
        differences.append((train[:, :pairs] - exact_train[:, :pairs])[both].abs())
        changed |= not torch.equal(torch.isfinite(train).sum(1), torch.isfinite(exact_train).sum(1))
    gradient_error = float((solution.gradient - exact.gradient).norm())
    return _Sample(torch.cat(differences), abs(solution.loss - exact.loss), gradient_error, changed)


def _errors(samples: list[_Sample], scale: np.ndarray) -> list[float]:
    times, losses, gradients, changed = zip(*samples, strict=True)
    same = ~np.array(changed)
    everywhere = np.ones_like(same)

    def relative(over: np.ndarray) -> float:
        size = _mean(scale[over])
        return _mean(np.array(gradients)[over]) / size if size > 0 else math.nan  # samples without a gradient

    return [
        _mean(torch.cat(times).numpy()),  # a network without spikes has no spike time error: NaN
        _mean(np.array(losses)),
        relative(everywhere),
        _mean(np.array(changed)),
        _mean(np.array(losses)[same]),
        relative(same),
    ]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
