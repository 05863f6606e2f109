"""What a process is told before it trains on a CPU: of subnormal numbers, and of freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch


def tune_process() -> None:
    """Set this process up to train on a CPU, as the training commands do; call it once, best at the beginning.

    - Subnormal numbers, those below 1e-38 in float32, count as 0. Adam's moments of weights whose input rarely spikes decay
      into them, and processors are slow with them: with trained moments, a step of ``mnist_gray`` took 1.15 and 1.55
      times as long without, in two runs of ``benchmarks/speed.py``.
    - Freed blocks of more than 32 MiB are kept for the next step. The C library would give them back to the system, and get
      them again page by page: a third to a half of a step of ``mnist_csnn``. On Linux (glibc) alone.

    It is not done at the import, since both are felt by all of the process: everything that torch and NumPy compute on this
    thread counts subnormal numbers as 0, and large blocks stay with the process.
    """
    keep_freed_memory()
    _flush_subnormals(True)


@contextlib.contextmanager
def tuned_process() -> Iterator[None]:
    """Within, what ``tune_process`` does; afterwards subnormal numbers are numbers again."""
    tune_process()
    try:
        yield
    finally:
        _flush_subnormals(False)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large blocks that are freed. Other systems are left as they are."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-4, 0)  # M_MMAP_MAX; glibc before 2.35 takes no larger M_MMAP_THRESHOLD than its own


def _flush_subnormals(on: bool) -> None:
    """Threads take this over from the one that starts them. Those of OpenMP, in which torch and the kernels compute, are
    therefore ended here; the next parallel loop starts others."""
    torch.set_flush_denormal(on)
    end_threads = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None) if os.name == "posix" else None
    if end_threads is not None:
        end_threads(2)  # omp_pause_hard
