"""What benchmarks share: where a result comes from (machine, versions, commit), and how much memory a job needs."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(*packages: str) -> dict[str, Any]:
    """What a result file must say besides its results; versions of torch, numba and ``packages``."""
    here = Path(__file__).parent
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numba", *packages)},
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True, cwd=here).strip(),
    }


def machine() -> dict[str, Any]:
    """Processor, number of threads of torch, and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": model, "threads": torch.get_num_threads(), "system": platform.system()}


def peak_memory(job: Callable[[], object]) -> float:
    """MiB that ``job`` adds, at its peak, to what this process holds (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    job()
    return (_process_memory("VmHWM") - before) / 1024


def in_new_process(function: Callable, *args) -> Any:
    """What ``function(*args)`` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _process_memory(key: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
