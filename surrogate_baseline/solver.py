"""``SurrogateTimeStepped``: ``eventprop``'s time-stepped solver with surrogate gradients, another rule for its backward pass.

Forward, both are the same computation, so equal weights give equal spikes and readouts, up to rounding. Backward, here
the number of spikes in a step is what carries the gradient, as if it were a smooth function of the potential H before reset,

    H_t = a V_{t-1} + phi I_{t-1} + psp_t,    I_t = s I_{t-1} + psc_t,    V_t = H_t - r_t S_t,
    dS/dH := surrogate(H_t - v_th)

with the coefficients (a, s, phi) of eq. (6), the drive (psp, psc) of eq. (11), and the fall r_t by which a spike has lowered
V at the end of its step. With G = dL/dS, backpropagation through time is

    dH_t = p + (G_t - r_t p) surrogate(H_t - v_th),    then    p <- a dH_t,    q <- s q + phi dH_t

where p = dL/dV_t and q = dL/dI_t; a detached reset leaves out r_t p. Where within its step a spike lies is a constant; a
spike that did not happen would have come at the end of the step. H_t can lie below v_th in a step with a spike, where V has
crossed the threshold and fallen again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop import LIF, GridSpikes, Spikes, TimeStepped
from eventprop.core.autograd import FirstOrder
from eventprop.core.neuron import adjoint_flow, decay, flow, integrated_psp, remaining_reset
from eventprop.core.observe import observe
from eventprop.core.spikes import whole_steps
from eventprop.solvers.problem import Dense, Problem, Recurrence
from eventprop.solvers.support import EVERYWHERE, Kind, Support
from eventprop.solvers.tape import Tape
from eventprop.solvers.time_stepped.functions import spikes_of
from eventprop.solvers.time_stepped.grid import Grid, dense
from eventprop.solvers.time_stepped.reference import KINDS
from eventprop.solvers.time_stepped.solver import BackwardRule, spikes_of_layer

from .feedback import Feedback, FeedbackGradient
from .surrogates import ARCTAN, Surrogate, check_surrogate, derivative


@dataclass(eq=False, repr=False, kw_only=True)
class RasterSpikes(GridSpikes):
    """Spikes on a grid that are differentiable in their number per step; their times are constants.

    Only layers of ``SurrogateTimeStepped`` pass a gradient on to them. What is made from them by an index, ``to`` or
    ``detach`` is ``GridSpikes``, without a gradient.

    Attributes:
        raster: [T, B, N] how many spikes each neuron emits in each step.
        step: [B, K] the step in which each spike was emitted, -1 for padding. It can differ from what the time says where a
            spike lies on a grid point.
        potential: computes the potential [T, B, N] at the end of each step, before the reset.
    """

    tensors: ClassVar[tuple[str, ...]] = (*GridSpikes.tensors, "raster", "step")

    raster: Tensor
    step: Tensor
    potential: Callable[[], Tensor]

    def first_spike_time(self) -> Tensor:
        """[B, N] time of each neuron's first spike, +inf where silent.

        Its gradient is that of the polynomial t_0 + sum_k (t_{k+1} - t_k) prod_{j <= k} (1 - S_j), where t_k is the (mean)
        time of the spikes in step k: a spike before the first would take its place, and without the first the next would.
        """
        first = super().first_spike_time().detach()
        raster = self.raster.detach()
        time = torch.where(raster > 0, self.per_step(self.time) / raster.clamp(min=1.0), self.ends()[:, None, None])
        later = torch.cat([time[1:], torch.full_like(time[:1], self.t_end)]) - time
        # several spikes in a step count as one here
        none = 1.0 - (self.raster - (raster - 1.0).clamp(min=0.0))
        smooth = (later * none.cumprod(0)).sum(0)
        return first + torch.where(torch.isfinite(first), smooth - smooth.detach(), 0.0)

    def ends(self) -> Tensor:
        """[T] the ends of the steps."""
        return self.dt * torch.arange(1, len(self.raster) + 1, dtype=self.dtype, device=self.device)

    def per_step(self, values: Tensor) -> Tensor:
        """[T, B, N] sums of ``values`` [B, K], one for each spike, over the spikes of a step."""
        return _per_step(self.raster, self.index, self.step, values)

    def differentiable(self, effect: Tensor, virtual: Tensor) -> Tensor:
        """Zero, with the derivative by the number of spikes that ``effect`` [T, B, N], summed over the spikes of each step,
        has: the effect of one spike of the step, or ``virtual``, that of one at the end of the step."""
        raster = self.raster.detach()
        return (self.raster - raster) * torch.where(raster > 0, effect / raster.clamp(min=1.0), virtual)

    # what follows returns plain GridSpikes, where Spikes promises its own type: without the raster there is no RasterSpikes
    def reordered(self, *args, **kwargs) -> GridSpikes:  # type: ignore[override]
        self._refuse_gradient()
        return super().reordered(*args, **kwargs)

    def reshape(self, *shape: int) -> GridSpikes:  # type: ignore[override]
        self._refuse_gradient()
        return super().reshape(*shape)

    def summed(self, values: Tensor) -> Tensor:
        if values.is_floating_point():
            self._refuse_gradient()
        return super().summed(values)

    def _refuse_gradient(self) -> None:
        if self.raster.requires_grad:
            raise TypeError(
                "surrogate gradients do not pass through what uses the times of single spikes (delays, pooling, dropout and "
                "augmentation of hidden layers, reshape, smooth counts); use TimeStepped or EventDriven there"
            )

    def _like(  # type: ignore[override]
        self, time: Tensor, index: Tensor, slope: Tensor | None, shape: tuple[int, ...], height: float
    ) -> GridSpikes:
        return GridSpikes._on_grid(time, index, shape, slope, self.dt, self.t_end, height)


@dataclass(frozen=True)
class SurrogateGradient(BackwardRule):
    """The rule of ``SurrogateTimeStepped``, whose arguments these are."""

    name: ClassVar[str] = "SurrogateTimeStepped"
    supports: ClassVar[Support] = {
        Kind(): EVERYWHERE,
        Kind(recurrence="delayed"): EVERYWHERE,
        Kind("convolution"): EVERYWHERE,
        Kind("linear map"): EVERYWHERE,
        Kind(output="max or mean"): EVERYWHERE,
    }

    surrogate: Surrogate = ARCTAN
    detach_reset: bool = False

    def __post_init__(self) -> None:
        check_surrogate(self.surrogate)

    def check(self, solver: TimeStepped) -> None:
        if solver.scheme != "exponential":
            raise ValueError(f"scheme must be 'exponential' for surrogate gradients, got {solver.scheme!r}")
        if solver.grazing != "raw":
            raise ValueError(f"grazing must be 'raw': surrogate gradients divide by no slope; got {solver.grazing!r}")

    def spikes(self, steps: Tensor, drive: Tensor, neuron: LIF, solver: TimeStepped) -> RasterSpikes:
        shape, drive = tuple(drive.shape[3:]), drive.flatten(3)
        tape, none = spikes_of(drive.detach(), steps, neuron, solver), drive.new_zeros(0, 0)
        return self._emitted(drive, steps, Recurrence(none, 0.0), tape, shape, neuron, solver)

    def recurrent_spikes(self, problem: Problem, arrivals: Spikes, solver: TimeStepped) -> RasterSpikes:
        neuron, synapses, recurrence = problem.neuron, problem.synapses, problem.recurrence
        assert isinstance(neuron, LIF)
        assert isinstance(synapses, Dense)
        assert recurrence is not None
        with torch.no_grad():
            tape = spikes_of_layer(problem, arrivals, solver)
        steps, drive = self.drive(arrivals, synapses.weight, neuron, solver)
        return self._emitted(drive, steps, recurrence, tape, (len(synapses.weight),), neuron, solver)

    def _emitted(
        self, drive: Tensor, steps: Tensor, recurrence: Recurrence, tape: Tape, shape: tuple[int, ...], neuron: LIF,
        solver: TimeStepped,
    ) -> RasterSpikes:  # fmt: skip
        """The spikes ``tape`` of neurons that receive ``drive`` [2, A, B, N] and, of a recurrent layer, their own."""
        tape = tape._replace(after=tape.after // KINDS)  # the step of each spike; padding stays -1
        observe(tape.neuron, tape.after)
        spikes = RasterSpikes._on_grid(tape.time, tape.neuron, shape, tape.slope, solver.dt, solver.t_end)
        layer = (drive, steps, recurrence.weight, *tape, recurrence.delay)
        spikes.raster, spikes.step = _Fire.of(*layer, neuron, solver, self), tape.after
        grid = Grid.of(neuron, solver.t_end, solver.dt, solver.scheme)
        detached = Recurrence(recurrence.weight.detach(), recurrence.delay)
        received = (drive.detach(), steps, tape, _feedback(tape, detached, grid), grid)
        spikes.potential = lambda: _potential(*received)[0]
        return spikes

    def effects(self, arrivals: Spikes, neuron: LIF, solver: TimeStepped) -> tuple[Tensor, Tensor]:
        if not isinstance(arrivals, RasterSpikes):
            return super().effects(arrivals, neuron, solver)
        _check_grid(arrivals, solver)
        steps, values = super().effects(arrivals.detach(), neuron, solver)
        if not arrivals.raster.requires_grad:
            return steps, values
        total = whole_steps(solver.t_end, solver.dt)
        y = (arrivals.step + 1).double() * solver.dt - arrivals.time.nan_to_num(posinf=0.0)
        _, psc, psp = decay(y.clamp(min=0.0), neuron.tau_mem, neuron.tau_syn)
        pairs = ((psp, 0.0), (psc, 1.0))  # eq. (11), and its value for a spike at the end of the step
        smooth = [arrivals.differentiable(arrivals.per_step(effect), values.new_tensor(end)) for effect, end in pairs]
        return torch.arange(total, device=steps.device), dense(steps, values, total) + torch.stack(smooth)

    def drive(self, arrivals: Spikes, weight: Tensor, neuron: LIF, solver: TimeStepped) -> tuple[Tensor, Tensor]:
        if not isinstance(arrivals, RasterSpikes):
            return super().drive(arrivals, weight, neuron, solver)
        _check_grid(arrivals, solver)
        if not arrivals.raster.requires_grad:
            return super().drive(arrivals, weight, neuron, solver)
        return solver.drive_behind(lambda x: F.linear(x.flatten(1), weight), arrivals, neuron)

    def potential(self, problem: Problem, arrivals: Spikes, solver: TimeStepped) -> Tensor:
        if not isinstance(arrivals, RasterSpikes):
            return super().potential(problem, arrivals, solver)
        _check_grid(arrivals, solver)
        exact = super().potential(problem, arrivals.detach(), solver)
        if not arrivals.raster.requires_grad:
            return exact
        weight, neuron, readout = problem.to_read_out()
        if readout.reduce == "max":  # with the derivative by the raster of the maximum over the ends of the steps
            smooth = solver.free_potential(arrivals, weight.detach(), neuron).amax(0).relu()
            return exact + (smooth - smooth.detach())

        def integral(time: Tensor) -> Tensor:  # of the potential that a spike raises; eq. (12)
            left = (solver.t_end - time).clamp(min=0.0)
            return integrated_psp(left, decay(left, neuron.tau_mem, neuron.tau_syn)[2], neuron.tau_mem, neuron.tau_syn)

        effect = arrivals.per_step(integral(arrivals.time.nan_to_num(posinf=solver.t_end)))
        smooth = arrivals.differentiable(effect, integral(arrivals.ends())[:, None, None])
        return exact + F.linear(smooth.sum(0), weight.detach()) / solver.t_end


def SurrogateTimeStepped(
    t_end: float, dt: float, *, surrogate: Surrogate = ARCTAN, detach_reset: bool = False, **options: Any
) -> TimeStepped:
    """Solve a layer as ``TimeStepped`` does, with surrogate gradients in the place of exact ones.

    Args:
        t_end, dt, options: as for ``TimeStepped``; ``scheme`` is "exponential" and ``grazing`` "raw".
        surrogate: derivative of a spike with respect to H - v_th; one of ``surrogates``, or a function.
        detach_reset: leave the reset out of the gradient.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.
    """
    return TimeStepped(t_end, dt, rule=SurrogateGradient(surrogate, detach_reset), **options)


def _check_grid(arrivals: RasterSpikes, solver: TimeStepped) -> None:
    if (arrivals.dt, arrivals.t_end) != (solver.dt, solver.t_end):
        raise ValueError(
            f"the input must be on the grid of this layer, dt={solver.dt} and t_end={solver.t_end}; it is on one of "
            f"dt={arrivals.dt} and t_end={arrivals.t_end}. Give all layers the same solver"
        )


class _Fire(FirstOrder):
    """The spikes of each step, [T, B, N], of the ``Tape`` (at, n, slope, step), differentiable in ``drive`` [2, A, B, N] and
    the weights ``recurrent`` [N, N], or [0, 0] if there is no feedback."""

    @staticmethod
    def forward(
        drive: Tensor, steps: Tensor, recurrent: Tensor, at: Tensor, n: Tensor, slope: Tensor, step: Tensor, delay: float,
        neuron: LIF, solver: TimeStepped, rule: SurrogateGradient,
    ) -> Tensor:  # fmt: skip
        shape = drive.new_empty((whole_steps(solver.t_end, solver.dt), *drive.shape[2:]))
        return _per_step(shape, n, step, torch.ones_like(at))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.delay, ctx.neuron, ctx.solver, ctx.rule = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx, grad):
        drive, steps, recurrent, *columns, raster = ctx.saved_tensors
        tape, neuron, solver = Tape(*columns), ctx.neuron, ctx.solver
        grid = Grid.of(neuron, solver.t_end, solver.dt, solver.scheme)
        feedback = _feedback(tape, Recurrence(recurrent, ctx.delay), grid)
        h, fall = _potential(drive, steps, tape, feedback, grid)
        g = derivative(ctx.rule.surrogate, h - neuron.v_th)
        fall = torch.where(raster > 0, fall / raster.clamp(min=1.0), neuron.v_th)
        places = dict(zip(steps.tolist(), range(len(steps)), strict=True))
        grad_drive = torch.empty_like(drive)
        again = None if feedback is None else FeedbackGradient(feedback, raster)
        p = q = torch.zeros_like(h[:1].sum(0))
        for t in reversed(range(grid.steps)):
            by_spikes = grad[t] if again is None else grad[t] + again.of_spikes(t)
            p = p + (by_spikes if ctx.rule.detach_reset else by_spikes - fall[t] * p) * g[t]  # dL/dH
            if t in places:
                grad_drive[0, places[t]], grad_drive[1, places[t]] = p, q
            if again is not None:
                again.receive(t, p, q)
            p, q = adjoint_flow(p, q, grid.a, grid.s, grid.phi)
        by_recurrent = torch.zeros_like(recurrent) if again is None else again.weight
        return grad_drive, None, by_recurrent, *[None] * 8


def _feedback(tape: Tape, recurrence: Recurrence, grid: Grid) -> Feedback | None:
    return Feedback(tape, *recurrence, grid) if recurrence.weight.numel() else None


def _potential(
    drive: Tensor, steps: Tensor, tape: Tape, feedback: Feedback | None, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Potential before reset at the end of each step, and by how much the spikes of the step lower it; both [T, B, N]."""
    y = (tape.after + 1).double() * grid.dt - tape.time
    shape = drive.new_empty((grid.steps, *drive.shape[2:]))
    fall = _per_step(shape, tape.neuron, tape.after, remaining_reset(y, grid.neuron.v_th, grid.neuron.tau_mem))
    if feedback is not None:
        drive, steps = dense(steps, drive, grid.steps) + feedback.drive(), torch.arange(grid.steps)
    received = dict(zip(steps.tolist(), drive.unbind(1), strict=True))
    h = torch.empty_like(fall)
    v = i = torch.zeros_like(fall[:1].sum(0))
    for t in range(grid.steps):
        v, i = flow(v, i, grid.a, grid.s, grid.phi)
        if t in received:
            v, i = v + received[t][0], i + received[t][1]
        h[t] = v
        v = v - fall[t]
    return h, fall


def _per_step(like: Tensor, index: Tensor, step: Tensor, values: Tensor) -> Tensor:
    """Sums of ``values`` [B, K], one for each spike, over the spikes of each step, with the shape [T, B, N] of ``like``."""
    sample, column = (index >= 0).nonzero(as_tuple=True)
    where = (step[sample, column], sample, index[sample, column])
    return torch.zeros_like(like).index_put(where, values[sample, column].to(like), accumulate=True)
