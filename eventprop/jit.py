"""How this package compiles its numba kernels, and how they are called.

The functions of ``eventprop.neuron`` are written with torch's elementwise functions; here numba learns what those mean
for plain numbers, so that the kernels compile the same equations. Compiled kernels are kept in a user cache directory
whose name holds a digest of the sources, so that an edited equation is never served from an old cache.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload, register_jitable
from torch import Tensor

from . import neuron
from .exponential import exp, expm1

config: Any = numba.config  # its settings are set at run time, unknown to type checkers

# OpenMP first: on Linux the kernels then run in the very threads that torch uses for its own operations (the symbols of the
# OpenMP library that torch loads are global). Two pools get in each other's way, since idle threads spin for milliseconds;
# and workqueue must not be entered from two Python threads.
if "NUMBA_THREADING_LAYER" not in os.environ and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


@overload(torch.exp)
def _exp(x):
    return lambda x: exp(x)


@overload(torch.expm1)
def _expm1(x):
    return lambda x: expm1(x)


@overload(torch.log1p)
def _log1p(x):
    return lambda x: math.log1p(x)


@overload(torch.log)
def _log(x):
    return lambda x: math.log(x)


@overload(torch.where)
def _where(condition, x, y):
    return lambda condition, x, y: x if condition else y


# IEEE inf and NaN stay; sums may be reordered, multiply-adds fused, divisions turned into products with the reciprocal
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}

# small functions, inlined wherever they are called so that loops over them become vector instructions
inlined = register_jitable(**OPTIONS, forceinline=True)

for equation in (
    neuron.two_decays, neuron.decay, neuron.first_moment, neuron.decay_by_tau, neuron.flow, neuron.rewind,
    neuron.integrated_psp, neuron.integral, neuron.slope, neuron.peak_time, neuron.adjoint_flow, neuron.spike_jump,
    neuron.arrival_time_gradient, neuron.effect_time_gradient,
):  # fmt: skip
    inlined(equation)


@functools.cache
def _cache_directory(folder: Path) -> str:
    """Where to keep what is compiled from sources in ``folder``."""
    package = Path(__file__).parent
    solvers = (package / "event_driven", package / "time_stepped")
    sources = {package / "neuron.py", package / "exponential.py", package / "jit.py", *folder.glob("*.py")}.union(
        *(s.rglob("*.py") for s in solvers)
    )
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return str(Path(base) / "eventprop" / digest.hexdigest()[:16])


def jit(function: Callable | None = None, *, parallel: bool = False):
    """Compile with numba and keep the result on disk."""
    if function is None:
        return lambda function: jit(function, parallel=parallel)
    saved = config.CACHE_DIR
    config.CACHE_DIR = _cache_directory(Path(function.__code__.co_filename).parent)
    try:
        return numba.njit(cache=True, parallel=parallel, nogil=True, **OPTIONS)(function)
    finally:
        config.CACHE_DIR = saved


@jit
def is_finite(state):
    """Written as a comparison: reordered sums would turn the x - x of np.isfinite into 0."""
    return abs(state.sum()) < np.inf


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


@functools.cache
def _start_threads() -> None:
    """Numba starts its threads when it is first asked about them. Where they are torch's, that sets torch's number too."""
    wanted = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(wanted)


@contextmanager
def threads() -> Iterator[None]:
    """Run numba with as many threads as torch, and give the caller's number back."""
    _start_threads()
    saved, wanted = numba.get_num_threads(), min(torch.get_num_threads(), config.NUMBA_NUM_THREADS)
    if saved == wanted:
        yield
        return
    numba.set_num_threads(wanted)
    try:
        yield
    finally:
        numba.set_num_threads(saved)
