"""How the solver on a time grid approaches the event-driven one as its step gets shorter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .event_driven import EventDriven
from .solver import Solver
from .spikes import Spikes
from .time_stepped import TimeStepped

DTS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True, eq=False)
class Convergence:
    """Errors of one scheme against the event-driven solver; every array has one entry for each step length ``dt``.

    A spike more or less is a jump of the loss, not an error that shrinks with dt, and a spike has no partner to compare
    its time with. ``counts_changed`` tells how many samples have one; they are part of the errors all the same.

    Attributes:
        scheme: "exponential" or "euler".
        dt: in ms.
        spike_time_error: mean absolute error in ms of all spikes that have a partner, in every layer.
        loss_error: mean over samples of the absolute error of the loss.
        gradient_error: mean over samples of the norm of the error of dL/dparameters, relative to the mean norm.
        counts_changed: share of the samples in which some neuron emits more or fewer spikes than it should.
    """

    scheme: str
    dt: np.ndarray
    spike_time_error: np.ndarray
    loss_error: np.ndarray
    gradient_error: np.ndarray
    counts_changed: np.ndarray

    def order(self, errors: np.ndarray) -> float:
        """The slope of log(errors) over log(dt): errors fall as dt to this power."""
        return float(np.polyfit(np.log(self.dt), np.log(errors), 1)[0])


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
    exact = _solve(network(EventDriven(t_end)), arrivals, target, loss)
    results = []
    for scheme in schemes:
        errors = [_errors(_solve(network(TimeStepped(t_end, dt, scheme)), arrivals, target, loss), exact) for dt in dts]
        results.append(Convergence(scheme, np.array(dts), *(np.array(column) for column in zip(*errors, strict=True))))
    return results


@dataclass(frozen=True, eq=False)
class _Solution:
    """Per sample: the spike times [N, K] of each layer, the loss, and the gradient of all parameters."""

    times: list[list[Tensor]]
    losses: Tensor
    gradients: Tensor


def _solve(
    network: nn.Sequential, arrivals: Spikes, target: Tensor, loss: Callable[[Any, Tensor], Tensor]
) -> _Solution:
    parameters, times, losses, gradients = list(network.parameters()), [], [], []
    for b in range(arrivals.batch_size):
        signal: Any = arrivals.select(torch.tensor([b]))
        trains = []
        for layer in network:
            signal = layer(signal)
            if isinstance(signal, Spikes):
                trains.append(signal.detach().to_times()[0])
        value = loss(signal, target[b : b + 1])
        parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        times.append(trains)
        losses.append(value.detach())
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return _Solution(times, torch.stack(losses), torch.stack(gradients))


def _errors(solution: _Solution, exact: _Solution) -> tuple[float, float, float, float]:
    differences, changed = [torch.zeros(0)], 0  # a network without spikes has no spike time error: NaN
    for trains, exact_trains in zip(solution.times, exact.times, strict=True):
        same = True
        for train, exact_train in zip(trains, exact_trains, strict=True):
            pairs = min(train.shape[1], exact_train.shape[1])
            both = torch.isfinite(train[:, :pairs]) & torch.isfinite(exact_train[:, :pairs])
            differences.append((train[:, :pairs] - exact_train[:, :pairs])[both].abs())
            same &= torch.equal(torch.isfinite(train).sum(1), torch.isfinite(exact_train).sum(1))
        changed += not same
    gradient_error = (solution.gradients - exact.gradients).norm(dim=1).mean() / exact.gradients.norm(dim=1).mean()
    return (
        float(torch.cat(differences).mean()),
        float((solution.losses - exact.losses).abs().mean()),
        float(gradient_error),
        changed / len(exact.times),
    )
