"""Stopping a run between two steps, by SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Which signal, if any, has asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def noting(request: StopRequest) -> Iterator[None]:
    """Within, the first SIGTERM or Ctrl-C is only noted in ``request``; a second one acts as it does elsewhere. Python delivers
    signals to the main thread: in others, nothing is noted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    saved = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in saved.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        request.signal = signal.Signals(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
