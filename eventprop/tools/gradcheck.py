"""A gradient checker that knows that spikes can appear, disappear and change places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eventprop.core.checks import positive
from eventprop.core.observe import observing


@dataclass(frozen=True, eq=False)
class GradientReport:
    """The outcome of ``check_gradients``; every tuple has one tensor for each input, of its shape.

    Attributes:
        analytic: gradients of the backward pass.
        numeric: central differences; NaN where none was taken.
        uncertainty: estimated error of ``numeric``; infinite where only one step was possible.
        count_changed: entries whose perturbation changed how many spikes some neuron emits. The loss jumps there, so the
            two gradients need not agree.
        order_changed: entries whose perturbation changed the order of spikes and arrivals, but not their number. The loss
            has a kink there.
        skipped: entries that are not finite, such as the padding of spike times, and were left alone.
    """

    analytic: tuple[Tensor, ...]
    numeric: tuple[Tensor, ...]
    uncertainty: tuple[Tensor, ...]
    count_changed: tuple[Tensor, ...]
    order_changed: tuple[Tensor, ...]
    skipped: tuple[Tensor, ...]

    @property
    def compared(self) -> tuple[Tensor, ...]:
        """The entries whose two gradients are compared: where the events stayed the same."""
        return tuple(
            ~(count | order | skipped)
            for count, order, skipped in zip(self.count_changed, self.order_changed, self.skipped, strict=True)
        )

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """|analytic - numeric| / |numeric| (2-norms over the compared entries), for each input."""
        rows = zip(self.analytic, self.numeric, self.compared, strict=True)
        return tuple(_relative_error(a[kept], n[kept]) for a, n, kept in rows)

    @property
    def relative_error(self) -> float:
        """The largest of ``relative_errors``."""
        return max(self.relative_errors)

    def __str__(self) -> str:
        lines = [f"largest relative error {self.relative_error:.1e}"]
        rows = zip(self.compared, self.count_changed, self.order_changed, self.skipped, strict=True)
        for k, (error, (kept, count, order, skipped)) in enumerate(zip(self.relative_errors, rows, strict=True)):
            lines.append(
                f"  input {k} {list(kept.shape)}: relative error {error:.1e} over {int(kept.sum())} entries; apart: "
                f"{int(count.sum())} where a spike appears or disappears, {int(order.sum())} where the order changes, "
                f"{int(skipped.sum())} not finite"
            )
        return "\n".join(lines)


def check_gradients(
    fn: Callable[..., Tensor], inputs: Sequence[Tensor] | Tensor, *, eps: float = 1e-6
) -> GradientReport:
    """Compare the backward pass with central differences in float64, entry by entry.

    ``fn(*inputs)`` may also use the inputs by closure, so ``check_gradients(lambda *_: loss(net(x)), [*net.parameters()])``
    checks the parameters of a module. Entries whose perturbation by +-eps changes which spikes there are, or their order,
    are reported apart: there the loss jumps or has a kink, and no gradient can agree with a difference across it.

    Each difference is extrapolated to step 0 from central differences at eps, 4 eps, ... 256 eps, as far as the events
    stay the same (Ridders 1982). A single step of 1e-6 is good to 1e-16/1e-6 of the loss, or less near grazing spikes:
    not enough to tell an exact gradient from one that is 1e-7 off.

    ``fn`` is called some ten times for each entry. For small networks a second thread only waits:
    ``torch.set_num_threads(1)``.

    Args:
        fn: returns the loss, a tensor with one element.
        inputs: float64 tensors; they are perturbed in place and restored.
        eps: the smallest perturbation, in the units of each input.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.

    >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> print(check_gradients(lambda x: (x**3).sum(), [x]).relative_error < 1e-9)
    True
    """
    positive("eps", eps)
    inputs = _checked(inputs)
    analytic, events = _backward(fn, inputs)

    @torch.no_grad()
    def run() -> tuple[float, list[Tensor]]:
        with observing() as events:
            return float(fn(*inputs)), events

    columns = [_numeric(run, x.detach(), events, eps) for x in inputs]
    return GradientReport(analytic, *map(tuple, zip(*columns, strict=True)))


# runs the function on the inputs as they are: its value, and the spikes and arrivals that came about, in their order
Run = Callable[[], tuple[float, list[Tensor]]]


def _checked(inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not inputs:
        raise ValueError("inputs must hold at least one tensor")
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"inputs[{k}] must be a float64 tensor, got {found}; convert with .double()")
        if not x.is_leaf:
            raise ValueError(f"inputs[{k}] must be a leaf tensor; pass x.detach()")
    return inputs


def _backward(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The gradients of the backward pass, and the events of the forward pass; the inputs stay as they are."""
    required = [x.requires_grad for x in inputs]
    try:
        for x in inputs:
            x.requires_grad_(True)
        with observing() as events:
            loss = fn(*inputs)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("fn must return a tensor with one element; reduce its output with .sum() or .mean()")
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    finally:
        for x, before in zip(inputs, required, strict=True):
            x.requires_grad_(before)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)), events


class _Numeric(NamedTuple):
    """What is known of one input without the backward pass; the fields are those of ``GradientReport``."""

    numeric: Tensor
    uncertainty: Tensor
    count_changed: Tensor
    order_changed: Tensor
    skipped: Tensor


def _numeric(run: Run, data: Tensor, events: list[Tensor], eps: float) -> _Numeric:
    """Differences for each finite entry of ``data``, which is moved in place; ``events`` are those without a move."""
    none = torch.zeros_like(data, dtype=torch.bool)
    found = _Numeric(
        torch.full_like(data, torch.nan), torch.full_like(data, torch.inf), none, none.clone(), ~torch.isfinite(data)
    )
    for entry in itertools.product(*map(range, data.shape)):
        if found.skipped[entry]:
            continue
        differences: list[float] = []
        for step in (eps * 4**k for k in range(5)):
            difference, moved = _difference(run, data, entry, step)
            same = all(_same(events, other) for other in moved)
            if same or not differences:
                differences.append(difference)
            if not same:
                break
        if not same and step == eps:
            same_counts = all(_same_counts(events, other) for other in moved)
            (found.order_changed if same_counts else found.count_changed)[entry] = True
        found.numeric[entry], found.uncertainty[entry] = _extrapolate(differences)
    return found


def _difference(run: Run, data: Tensor, entry: tuple[int, ...], step: float) -> tuple[float, list[list[Tensor]]]:
    """The central difference over ``step``, and the events on both sides of it."""
    value = data[entry].clone()
    try:
        data[entry] = value + step
        above, events_above = run()
        data[entry] = value - step
        below, events_below = run()
    finally:
        data[entry] = value
    return (above - below) / (2 * step), [events_above, events_below]


def _extrapolate(differences: list[float]) -> tuple[float, float]:
    """The limit of central differences at steps h, 4 h, 16 h, ... for h -> 0, and its error (Ridders 1982): of all
    polynomial extrapolations in h^2, the one that differs least from those it is made of."""
    best, best_error = differences[0], math.inf
    coarser: list[float] = []
    for difference in reversed(differences):
        row = [difference]
        for order, previous in enumerate(coarser, start=1):
            value = row[-1] + (row[-1] - previous) / (16.0**order - 1.0)
            error = max(abs(value - row[-1]), abs(value - previous))
            if error < best_error:
                best, best_error = value, error
            row.append(value)
        coarser = row
    return best, best_error


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _same_counts(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and torch.equal((a >= 0).sum(1), (b >= 0).sum(1)) for a, b in zip(left, right, strict=True)
    )


def _relative_error(analytic: Tensor, numeric: Tensor) -> float:
    error, scale = float((analytic - numeric).norm()), float(numeric.norm())
    return error / scale if scale > 0 else error
