"""What benchmarks share: where a result comes from (machine, versions, commit), and the memory of a process."""

from __future__ import annotations

import platform
import subprocess
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


def process_memory(key: str) -> int:
    """KiB of this process: "VmRSS" now, "VmHWM" at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
