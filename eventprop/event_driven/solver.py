"""``EventDriven``: the exact solver in continuous time, and its autograd functions."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import choice, positive
from ..neuron import LIF
from ..observe import observe
from ..spikes import Spikes
from ..tape import Maximum, Tape

BACKENDS = ("auto", "numba", "torch")
GRAZING = ("raw", "clamp", "drop")
READOUTS = ("max", "mean")


@dataclass(frozen=True)
class EventDriven:
    """Solve a layer exactly, from event to event, and differentiate it by the adjoint method.

    A layer is at rest before its first arrival. Spike times solve V(t) = v_th to rounding error, every crossing is found,
    and backward memory grows with the number of spikes alone.

    Args:
        t_end: end of the simulated window in ms; spikes arriving later have no effect.
        grazing: what the backward pass does where a spike crosses the threshold with a slope dV/dt below ``min_slope``,
            since eq. (9) divides by the slope. "raw": nothing, the gradient is exact; "clamp": the slope counts as
            ``min_slope``; "drop": the spike passes no gradient on. The forward pass is the same for all.
        min_slope: the slope in 1/ms below which a crossing counts as grazing.
        backend: "numba" (CPU), "torch" (any device; the reference), or "auto": numba for CPU tensors, else torch.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.
    """

    t_end: float
    grazing: str = "raw"
    min_slope: float = 1e-3
    backend: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "t_end", positive("t_end", self.t_end))
        object.__setattr__(self, "min_slope", positive("min_slope", self.min_slope))
        choice("grazing", self.grazing, GRAZING)
        choice("backend", self.backend, BACKENDS)

    def spikes(self, arrivals: Spikes, weight: Tensor, neuron: LIF) -> Spikes:
        """The spikes that a layer with ``weight`` [N, M] emits; differentiable in the arrival times and the weight."""
        _check(arrivals, weight)
        tape = Tape(*_SpikeTimes.apply(arrivals.time, arrivals.index.long(), weight, neuron, self))
        observe(tape.neuron, tape.after)
        return Spikes._trusted(tape.time, tape.neuron, weight.shape[0], tape.slope)

    def readout(self, arrivals: Spikes, weight: Tensor, neuron: LIF, reduce: str) -> Tensor:
        """[B, N] potential of neurons without threshold: its maximum over time, or its time average over [0, t_end]."""
        _check(arrivals, weight)
        choice("reduce", reduce, READOUTS)
        if reduce == "max":
            maximum = Maximum(*_MaximumVoltage.apply(arrivals.time, arrivals.index.long(), weight, neuron, self))
            observe(maximum.after, maximum.arrival)
            return maximum.value
        received = _Average.apply(arrivals.time, arrivals.index.long(), weight.shape[1], neuron, self)
        with torch.autocast(weight.device.type, enabled=False):
            return received @ weight.t()

    def _backend(self, device: torch.device) -> ModuleType:
        from . import reference

        if self.backend == "torch" or (self.backend == "auto" and device.type != "cpu"):
            return reference
        if device.type != "cpu":
            raise ValueError(f"backend 'numba' needs CPU tensors, got {device}; use backend='auto'")
        from . import kernels  # imported here: numba is slow to import

        return kernels

    def _effective_slope(self, slope: Tensor) -> Tensor:
        if self.grazing == "clamp":
            return slope.clamp(min=self.min_slope)
        if self.grazing == "drop":
            return slope.masked_fill(slope < self.min_slope, torch.inf)
        return slope


def _remember(ctx, inputs, output) -> None:
    """Save what the backward passes of the two functions below need; only their first output is differentiable."""
    time, index, weight, ctx.neuron, ctx.solver = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(time, index, weight, *output)


def _where_needed(ctx, grad_time: Tensor, grad_weight_t: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the two functions' inputs, from those of the arrival times and of the transposed weight."""
    need_time, _, need_weight, *_ = ctx.needs_input_grad
    return grad_time if need_time else None, None, grad_weight_t.t() if need_weight else None, None, None


class _SpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        return solver._backend(weight.device).forward(time, index, weight.t().contiguous(), neuron, solver.t_end)

    setup_context = staticmethod(_remember)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *tape = ctx.saved_tensors
        tape = Tape(*tape)
        tape = tape._replace(slope=ctx.solver._effective_slope(tape.slope))
        grad_time, grad_weight_t = ctx.solver._backend(weight.device).adjoint(
            time, index, weight.t().contiguous(), tape, grad, ctx.neuron, ctx.neuron.v_th, ctx.solver.t_end,
            *ctx.needs_input_grad[0:3:2],
        )  # fmt: skip
        return _where_needed(ctx, grad_time, grad_weight_t)


class _MaximumVoltage(torch.autograd.Function):
    """A maximum is an observation of V: an entry of the adjoint's tape that adds dL/dV to p and resets nothing. In
    eq. (9) that is a spike with v_th = 0 and slope -1. Where an arrival ended the rise of V, the observation moves with
    that arrival: dL/dt_j gains dL/dV times the slope before it."""

    @staticmethod
    def forward(time: Tensor, index: Tensor, weight: Tensor, neuron: LIF, solver: EventDriven) -> tuple[Tensor, ...]:
        backend = solver._backend(weight.device)
        return backend.maximum(time, index, weight.t().contiguous(), neuron, solver.t_end)

    setup_context = staticmethod(_remember)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None, None
        time, index, weight, *maximum = ctx.saved_tensors
        maximum = Maximum(*maximum)
        never = maximum.after < 0
        order = maximum.after.masked_fill(never, time.shape[1]).argsort(dim=1)  # padding last
        tape = Tape(
            time=maximum.time.gather(1, order),
            neuron=order.masked_fill(never.gather(1, order), -1),
            slope=-torch.ones_like(grad),
            after=maximum.after.gather(1, order),
        )
        grad_time, grad_weight_t = ctx.solver._backend(weight.device).adjoint(
            time, index, weight.t().contiguous(), tape, grad.gather(1, order), ctx.neuron, 0.0, ctx.solver.t_end,
            *ctx.needs_input_grad[0:3:2],
        )  # fmt: skip
        if grad_time.shape[1]:
            moved = torch.where(maximum.arrival >= 0, grad * maximum.slope, 0.0)
            grad_time = grad_time.scatter_add(1, maximum.arrival.clamp(min=0), moved)
        return _where_needed(ctx, grad_time, grad_weight_t)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(time: Tensor, index: Tensor, inputs: int, neuron: LIF, solver: EventDriven) -> Tensor:
        return solver._backend(time.device).average(time, index, inputs, neuron, solver.t_end)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        time, index, _, ctx.neuron, ctx.solver = inputs
        ctx.save_for_backward(time, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        time, index = ctx.saved_tensors
        backend = ctx.solver._backend(time.device)
        return backend.average_adjoint(time, index, grad, ctx.neuron, ctx.solver.t_end), None, None, None, None


def _check(arrivals: object, weight: Tensor) -> None:
    if not isinstance(arrivals, Spikes):
        raise TypeError(
            f"the input must be Spikes, got {type(arrivals).__name__}; encode data with latency_encode or Spikes.from_times"
        )
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"weight must be float32 or float64, got {weight.dtype}; convert the layer with .float()")
    if arrivals.dtype != weight.dtype:
        raise TypeError(f"spike times are {arrivals.dtype} but weight is {weight.dtype}; convert with spikes.to(dtype)")
    if arrivals.device != weight.device:
        raise ValueError(
            f"spikes are on {arrivals.device} but weight is on {weight.device}; move with spikes.to(device)"
        )
    if arrivals.num_neurons != weight.shape[1]:
        raise ValueError(
            f"the input has num_neurons={arrivals.num_neurons} but weight {list(weight.shape)} takes {weight.shape[1]}"
        )
