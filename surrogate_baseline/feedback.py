"""What the spikes of a layer do to the layer itself, seen as spikes of each step.

A spike of step t arrives ``delay`` later, in a later step, with the effect (psp, psc) of eq. (11) at the end of that. Both are
constants, as where within its step a spike lies is; a spike that did not happen would have come at the end of its step.

Shapes: B samples, N neurons, T steps, S spikes in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eventprop.core.neuron import decay
from eventprop.core.spikes import step_of
from eventprop.solvers.tape import Tape
from eventprop.solvers.time_stepped.grid import Grid


class Feedback:
    """Of a layer with ``weight`` [N, N], whose spikes, with their steps in ``after``, are ``tape``."""

    def __init__(self, tape: Tape, weight: Tensor, delay: float, grid: Grid) -> None:
        self.weight, self.grid, self.shape = weight, grid, (grid.steps, len(tape.time), len(weight))
        self.sample, column = (tape.neuron >= 0).nonzero(as_tuple=True)
        self.neuron, self.step = tape.neuron[self.sample, column], tape.after[self.sample, column]
        at = tape.time[self.sample, column].double() + delay
        self.arrives, *self.effect = _arrival(at, self.step, grid, weight)
        self.order = self.step.argsort(stable=True)
        self.counts = torch.bincount(self.step, minlength=grid.steps).tolist()
        steps = torch.arange(grid.steps, device=weight.device)
        arrives, psp, psc = _arrival((steps + 1).double() * grid.dt + delay, steps, grid, weight)
        self.virtual = list(zip(arrives.tolist(), psp.tolist(), psc.tolist(), strict=True))

    def channels(self) -> Tensor:
        """[2, T, B, N] what the own spikes that arrive in each step raise through a weight of 1."""
        inside = self.arrives < self.grid.steps
        where = self.arrives[inside], self.sample[inside], self.neuron[inside]
        silence = self.weight.new_zeros(self.shape)
        return torch.stack([silence.index_put(where, x[inside], accumulate=True) for x in self.effect])

    def drive(self) -> Tensor:
        """[2, T, B, N] what they raise behind the weights."""
        return self.channels() @ self.weight.t()


class FeedbackGradient:
    """The walk back through the steps of a layer with ``feedback``, which emits ``raster`` [T, B, N]."""

    def __init__(self, feedback: Feedback, raster: Tensor) -> None:
        self.feedback, self.raster, self.channels = feedback, raster, feedback.channels()
        self.weight = torch.zeros_like(feedback.weight)  # [N, N] the gradient of the weights
        self.received = torch.zeros_like(
            self.channels
        )  # [2, T, B, N] of what arrives in each step, through a weight of 1
        self.by_step = feedback.order.split(feedback.counts)

    def of_spikes(self, step: int) -> Tensor:
        """[B, N] the gradient of the number of spikes in ``step``, once those of all later steps are known."""
        feedback = self.feedback
        arrives, psp, psc = feedback.virtual[step]
        if arrives < feedback.grid.steps:
            virtual = psp * self.received[0, arrives] + psc * self.received[1, arrives]
        else:
            virtual = torch.zeros_like(self.raster[step])
        k = self.by_step[step]
        k_inside = k[feedback.arrives[k] < feedback.grid.steps]
        where = feedback.sample[k_inside], feedback.neuron[k_inside]
        seen = self.received[:, feedback.arrives[k_inside], *where]
        effect = torch.zeros_like(virtual)
        effect.index_put_(
            where, sum(x[k_inside] * y for x, y in zip(feedback.effect, seen, strict=True)), accumulate=True
        )
        raster = self.raster[step]
        return torch.where(raster > 0, effect / raster.clamp(min=1.0), virtual)

    def receive(self, step: int, p: Tensor, q: Tensor) -> None:
        """The gradients [B, N] of what arrives in ``step``."""
        grad = torch.stack([p, q])
        self.received[:, step] = grad @ self.feedback.weight
        self.weight += grad.flatten(0, 1).t() @ self.channels[:, step].flatten(0, 1)


def _arrival(at: Tensor, emitted: Tensor, grid: Grid, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step in which what arrives at the times ``at`` acts, T beyond the window, and psp and psc at its end; it was
    ``emitted`` in a step before."""
    step = torch.maximum(step_of(at, grid.dt), emitted + 1)
    y = ((step + 1).double() * grid.dt - at).clamp(0.0, grid.dt)
    _, psc, psp = decay(y, grid.neuron.tau_mem, grid.neuron.tau_syn)
    inside = at < grid.steps * grid.dt
    return torch.where(inside, step, grid.steps).clamp(max=grid.steps), psp.to(like), psc.to(like)
