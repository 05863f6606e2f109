"""A way to watch which spikes a computation makes, without changing it: used by ``check_gradients``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_observed: ContextVar[list[Tensor] | None] = ContextVar("observed", default=None)


def observe(*events: Tensor) -> None:
    """Called by a solver with integer tensors that tell which events happened, and in which order."""
    gathered = _observed.get()
    if gathered is not None:
        gathered.extend(event.detach().cpu() for event in events)


def observed() -> int:
    """How many events have been observed, for ``forget``."""
    return len(_observed.get() or ())


def forget(seen: int) -> None:
    """Forget the events that were observed after ``observed`` returned ``seen``: those of a provisional computation."""
    events = _observed.get()
    if events is not None:
        del events[seen:]


@contextmanager
def observing() -> Iterator[list[Tensor]]:
    """Within this context, the returned list gathers what the solvers ``observe``."""
    events: list[Tensor] = []
    token = _observed.set(events)
    try:
        yield events
    finally:
        _observed.reset(token)
