"""Layers between the neurons of rate-coded networks: maps of the inputs [T, B, ...] of all steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventprop.core.checks import finite_entries

# where gathering rows beats a dense product on two CPU cores: share of entries that are not zero, and number of outputs
SPARSE, WIDE = 0.1, 64


class Stepwise(nn.Module):
    """A module that knows nothing of time, applied to every step: [T, B, ...] to [T, B, ...].

    All steps are one batch to it. An input that is the same in all steps, by ``Tensor.expand``, is mapped once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        if x.stride(0) == 0:
            y = self.module(x[0])
            return y.expand(len(x), *y.shape)
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Dropout(nn.Module):
    """Dropout of neurons for all steps of a sample: [T, B, ...] to [T, B, ...], the rest scaled up by 1/(1 - ``p``).

    A mask that changed from step to step would leave neurons that integrate over the steps with an average.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(torch.ones_like(x[0]), self.p) if self.training and self.p > 0 else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Linear(nn.Module):
    """Synapses [T, B, in_features] to [T, B, out_features], fast where the input is sparse, as rasters from data are.

    Args:
        in_features, out_features: M and N.
        bias: whether to add a learnable bias in every step.
        device, dtype: of the parameters, which begin as those of ``torch.nn.Linear``.

    Attributes:
        weight: [N, M] Parameter; bias: [N] Parameter or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **factory) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        self.bias = nn.Parameter(torch.empty(out_features, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as those of ``torch.nn.Linear``."""
        bound = 1.0 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for name, parameter in self.named_parameters():
            finite_entries(f"Linear.{name}", parameter)
        if x.stride(0) == 0:  # the same in all steps
            y = F.linear(x[0], self.weight, self.bias)
            return y.expand(len(x), *y.shape)
        if self.out_features >= WIDE and x.device.type == "cpu" and not x.requires_grad:
            entries = x.flatten().nonzero().squeeze(1)
            if len(entries) <= SPARSE * x.numel():
                return self._gathered(x, entries)
        return F.linear(x, self.weight, self.bias)

    def _gathered(self, x: Tensor, entries: Tensor) -> Tensor:
        """The same from the rows of the weight that belong to ``entries``, the places where ``x`` is not zero."""
        rows = math.prod(x.shape[:-1])
        counts = torch.bincount(entries // self.in_features, minlength=rows)
        y = F.embedding_bag(
            entries % self.in_features, self.weight.t().contiguous(), counts.cumsum(0) - counts, mode="sum",
            per_sample_weights=x.flatten()[entries],
        )  # fmt: skip
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
