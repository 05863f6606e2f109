"""Stopping a run whose loss or gradient is NaN or infinite, before the step that would spoil the weights."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from eventprop.core.spikes import Spikes


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is NaN or infinite; ``batch`` is what it came from."""

    batch: dict[str, Any]


def check_finite(
    loss: Tensor | None, network: nn.Module, epoch: int, step: int, inputs: Spikes | Tensor, target: Tensor
) -> None:
    """Raise where the loss, if there is one, or a gradient is not finite.

    Args:
        epoch, step: complete ones, before this step.
        inputs, target: the batch, for the error to keep.

    Raises:
        NonFiniteError: with the name of the loss or of the parameter.
    """
    if (bad := _not_finite(loss, network)) is None:
        return
    of_loss = "" if loss is None else f"; the loss is {loss.item():.3g}, which options of it, loss.*, may lower"
    error = NonFiniteError(
        f"{bad} is not finite in epoch {epoch + 1}, step {step + 1}; the weights are still those before that step. Try a lower "
        f"optimizer.lr, or solver.grazing=clamp{of_loss}"
    )
    error.batch = {"epoch": epoch, "step": step, "inputs": _plain(inputs), "target": target}
    raise error


def _not_finite(loss: Tensor | None, network: nn.Module) -> str | None:
    """The name of what is NaN or infinite: the loss, or the first gradient that is."""
    if loss is not None and not math.isfinite(loss.item()):
        return "the loss"
    for name, parameter in network.named_parameters():
        # a sum shows inf and NaN in a small part of the time, but may itself overflow
        grad = parameter.grad
        if grad is not None and not math.isfinite(grad.sum().item()) and not grad.isfinite().all():
            return f"the gradient of {name}"
    return None


def _plain(inputs: Spikes | Tensor) -> dict[str, Any] | Tensor:
    """A batch as what a file can hold."""
    if isinstance(inputs, Spikes):
        return {"time": inputs.time, "index": inputs.index, "shape": inputs.shape, "height": inputs.height}
    return inputs
