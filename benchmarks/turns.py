"""How contenders are measured: each in a process of its own, in turns, so that a noisy machine is noisy for all.

In a turn one step follows the other, as in training. What counts is the median over all steps but those of the first fifth of a
second of a turn, when caches are cold and threads asleep, and but those of a warm-up. Between its turns a process sleeps: two
pools of threads that spin on two cores would slow each other down many times. Peak memory is what a step adds, at its peak, to
what the process holds between steps: network, optimizer, data, libraries and compiled code are left out (Linux).
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from contenders import Work
from provenance import peak_memory

from eventprop import tune_process

TURN, COLD = 1.0, 0.2  # s


class Contender:
    """A contender in a process of its own: ``module`` or ``module:variant`` of ``contenders``."""

    def __init__(self, name: str, job: Work) -> None:
        self.name, self.first, self.times = name, [], []
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, job, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process ends the waiting for it
        self.skipped: str | None = self._pipe.recv()

    def turn(self, seconds: float) -> list[float]:
        """Seconds of each step of a turn of at least two steps."""
        self._pipe.send(seconds)
        return self._pipe.recv()

    def finish(self, slow: bool) -> dict[str, float]:
        """End the process; what a row of the table has besides times. Memory of a ``slow`` one is measured once."""
        self._pipe.send(None)
        self._pipe.send(1 if slow else 3)
        rest = self._pipe.recv()
        self._process.join()
        return rest


def _work(name: str, job: Work, pipe) -> None:
    module, _, variant = name.partition(":")
    try:
        adapter = importlib.import_module(f"contenders.{module}")
        for package in adapter.PACKAGES:
            version(package)
    except PackageNotFoundError as error:
        pipe.send(f"{error.name} is not installed")
        return
    if getattr(adapter, "TUNED", True):
        tune_process()
    step = job.step_of(adapter, variant)
    together = getattr(step, "steps", 1)
    pipe.send(None)
    batches = itertools.cycle(range(len(job.labels)))
    while (seconds := pipe.recv()) is not None:
        times: list[float] = []
        while sum(times) < seconds or len(times) < 2:
            begin = time.perf_counter()
            step(next(batches))
            times.append(time.perf_counter() - begin)
        pipe.send([seconds / together for seconds in times])
    rest = {"peak_mib": statistics.median(peak_memory(lambda: step(0)) for _ in range(pipe.recv()))}
    if hasattr(step, "hidden_spikes"):
        rest["hidden_spikes"] = step.hidden_spikes()
    pipe.send(rest)


def compare(names: Iterable[str], job: Work, turns: int, patience: float) -> dict[str, dict[str, Any]]:
    """Alternate the contenders. The first turn is a warm-up. One that needs more than ``patience`` seconds for its
    second step (the first may compile) stops there, and that step is what is reported."""
    rows: dict[str, dict[str, Any]] = {}
    contenders = []
    for name in names:
        contender = Contender(name, job)
        print(f"{name}: {contender.skipped or 'ready'}", file=sys.stderr)
        if contender.skipped:
            rows[name] = {"skipped": contender.skipped}
        else:
            contenders.append(contender)
    for contender in contenders:
        contender.first = contender.turn(0.0)
    quick = [contender for contender in contenders if contender.first[1] < patience]
    for turn in range(turns + 1):
        for contender in quick:
            times = contender.turn(TURN)
            cold = min(max(1, int(np.searchsorted(np.cumsum(times), COLD))), len(times) - 1)
            contender.times += times[cold:] if turn > 0 else []
    for contender in contenders:
        adapter = importlib.import_module(f"contenders.{contender.name.partition(':')[0]}")
        times = contender.times or contender.first[1:]
        low, median, high = statistics.quantiles(times) if len(times) > 1 else times * 3
        rows[contender.name] = {
            "seconds": median,
            "ms_per_step": [1e3 * x for x in (low, median, high)],
            "steps": len(times),
            **contender.finish(slow=contender not in quick),
            "versions": {package: version(package) for package in adapter.PACKAGES},
            "not_equal": adapter.NOT_EQUAL,
        }
    return rows
