"""How many threads the kernels use: as many as torch, unless torch has handed its threads over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_handed_over: ContextVar[int | None] = ContextVar("handed_over", default=None)


def kernel_threads() -> int:
    """The number of threads that the kernels use."""
    return _handed_over.get() or torch.get_num_threads()


@contextmanager
def threads_for_kernels() -> Iterator[None]:
    """While this lasts, torch's own operations use one thread and the kernels all.

    torch and numba each keep a pool of threads that spin for milliseconds when they have nothing to do. Where small torch
    operations and kernels alternate, as in training, the idle threads of one pool hold the cores that the other needs.
    """
    threads = kernel_threads()
    token = _handed_over.set(threads)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        _handed_over.reset(token)
