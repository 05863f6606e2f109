"""A way to watch which spikes a computation makes, without changing it: used by ``check_gradients``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_observed: ContextVar[list[Tensor] | None] = ContextVar("observed", default=None)


def observe(*events: Tensor) -> None:
    """Called by a solver with integer tensors that tell which events happened, and in which order."""
    observed = _observed.get()
    if observed is not None:
        observed.extend(event.detach().cpu() for event in events)


@contextmanager
def observing() -> Iterator[list[Tensor]]:
    """Within this context, the returned list gathers what the solvers ``observe``."""
    events: list[Tensor] = []
    token = _observed.set(events)
    try:
        yield events
    finally:
        _observed.reset(token)
