"""Kernels as operators of torch, so that ``torch.compile``, ``torch.export`` and ``torch.func`` take them as they are.

An operator is ``torch.ops.eventprop.NAME``: a function of tensors and numbers that has no gradient of its own (that is the
business of the functions in the solvers), told apart from plain Python by three things: a schema, which the annotations give;
the shapes of its results, for tracing without data; and what it does with a dimension that ``vmap`` adds: one call for each
of its entries.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.tensorlike import traced

VMAP: Any = torch._C._parse_dispatch_key("VmapMode")  # of is_grads_batched
LIBRARY = torch.library.Library("eventprop", "DEF")


def operator(shapes: Callable[..., Any], *padding: float) -> Callable[[Callable], Callable[..., Any]]:
    """Make the decorated function an operator of its name.

    Args:
        shapes: with the same arguments, returns tensors like those that the function returns, of any values.
        padding: of each result, where ``vmap`` puts together results of different shapes; without, shapes must agree.
    """

    def register(function: Callable) -> Callable[..., Any]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        in_full_precision = _without_autocast(function)
        LIBRARY.impl(name, _unseen(in_full_precision), "CompositeExplicitAutograd")
        torch.library.register_fake(f"eventprop::{name}", shapes, lib=LIBRARY)
        made = getattr(torch.ops.eventprop, name).default

        def one_by_one(info, in_dims, *arguments):
            results = [
                made(*(x.select(d, k) if isinstance(d, int) else x for x, d in zip(arguments, in_dims, strict=True)))
                for k in range(info.batch_size)
            ]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            columns = zip(*results, strict=True)
            stacked = tuple(
                _stack(column, fill) for column, fill in zip(columns, padding or (0.0,) * len(results[0]), strict=True)
            )
            return stacked, (0,) * len(stacked)

        torch.library.register_vmap(f"eventprop::{name}", one_by_one, lib=LIBRARY)

        @functools.wraps(function)
        def call(*arguments):
            if _transforming() or traced(*(x for x in arguments if isinstance(x, Tensor))):
                return made(*arguments)
            # not by the dispatcher, which would take 10 to 20 us, a few percent of a training step
            autocast = torch.is_autocast_enabled(arguments[0].device.type)
            return in_full_precision(*arguments) if autocast else function(*arguments)

        return call

    return register


def _transforming() -> bool:
    """Whether ``torch.func``, or ``is_grads_batched`` of ``torch.autograd.grad``, is at work."""
    if torch.compiler.is_compiling():
        return True
    batching = torch._C._dispatch_tls_is_dispatch_key_included(VMAP)
    return batching or torch._C._functorch.maybe_current_level() is not None


def _without_autocast(function: Callable) -> Callable:
    """``function``, whose first argument is a tensor, as it is without autocast."""

    def in_full_precision(*arguments):
        with torch.autocast(arguments[0].device.type, enabled=False):
            return function(*arguments)

    return in_full_precision


def _unseen(function: Callable) -> Callable:
    """``function`` out of sight of torch.compile, which traces into whatever runs between two graphs."""

    def unseen(*arguments):
        # torch._dynamo takes a second to import
        return _disabled(function)(*arguments) if "torch._dynamo" in sys.modules else function(*arguments)

    return unseen


_disabled = functools.cache(torch.compiler.disable)


def some() -> torch.SymInt:
    """For ``shapes``: a size that depends on the data."""
    return torch.library.get_ctx().new_dynamic_size()


def rows(like: Tensor, size: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For ``shapes``: a tape of at most ``size`` spikes for each of the samples of ``like`` [B, ...]."""
    shape = (like.shape[0], size)
    integers = like.new_empty(shape, dtype=torch.int64)
    return like.new_empty(shape), integers, like.new_empty(shape), torch.empty_like(integers)


TAPE_PADDING = (math.inf, -1, math.inf, -1)


def _stack(tensors: Sequence[Tensor], fill: float) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(x.shape for x in tensors), strict=True)]

    def padded(x: Tensor) -> Tensor:
        missing = [n for large, size in zip(reversed(shape), reversed(x.shape), strict=True) for n in (0, large - size)]
        return F.pad(x, missing, value=fill)

    return torch.stack([padded(x) for x in tensors])
