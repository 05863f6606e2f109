"""How this package compiles its numba kernels, and how they are called.

The functions of ``eventprop.core.neuron`` are written with torch's elementwise functions; here numba learns what those mean
for plain numbers, so that the kernels compile the same equations. With NUMBA_DISABLE_JIT=1 nothing is compiled, and the same
functions run in Python.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload, register_jitable
from torch import Tensor

from eventprop.core import neuron

from .cache import config, keep
from .exponential import exp, expm1

# OpenMP first: on Linux the kernels then run in the very threads that torch uses for its own operations (the symbols of the
# OpenMP library that torch loads are global). Two pools get in each other's way, since idle threads spin for milliseconds;
# and workqueue must not be entered from two Python threads.
if "NUMBA_THREADING_LAYER" not in os.environ and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


class _Uncompiled:
    """What ``math`` or ``torch`` is in the modules of functions that numba is told not to compile (NUMBA_DISABLE_JIT):
    ``functions`` take numbers as compiled code does, everything else is the module's."""

    def __init__(self, module: ModuleType, functions: dict[str, Callable]) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


# beyond their domain, those of ``math`` raise
UNCOMPILED_MATH = _Uncompiled(math, {name: getattr(np, name) for name in ("exp", "expm1", "log", "log1p", "sqrt")})
UNCOMPILED_TORCH = _Uncompiled(torch, {})


def numbers(function: Callable) -> Callable:
    """Register what an elementwise ``function`` of torch means for plain numbers, in the form that ``overload`` asks for."""

    def register(meaning: Callable) -> Callable:
        def of_numbers(*args):
            return function(*args) if any(isinstance(x, Tensor) for x in args) else meaning(*args)(*args)

        setattr(UNCOMPILED_TORCH, function.__name__, of_numbers)
        return overload(function)(meaning)

    return register


@numbers(torch.exp)
def _exp(x):
    return lambda x: exp(x)


@numbers(torch.expm1)
def _expm1(x):
    return lambda x: expm1(x)


@numbers(torch.log1p)
def _log1p(x):
    return lambda x: math.log1p(x)


@numbers(torch.log)
def _log(x):
    return lambda x: math.log(x)


@numbers(torch.where)
def _where(condition, x, y):
    return lambda condition, x, y: x if condition else y


def _uncompiled(function: Callable) -> Callable:
    """``function`` as it is, but for NumPy's rules, which are numba's, for numbers: 1/0 is inf, and a float32 times a
    setting is a float64."""
    stand_ins = {"math": UNCOMPILED_MATH, "torch": UNCOMPILED_TORCH}
    names = function.__globals__
    names.update({name: stand_ins[name] for name in names.keys() & stand_ins})

    @functools.wraps(function)
    def call(*args):
        return function(*map(_number, args))

    return call


def _number(x: Any) -> Any:
    """``x``, or the fields of a named tuple ``x``, with floats as NumPy's."""
    if isinstance(x, tuple) and hasattr(x, "_make"):
        return x._make(map(_number, x))
    return np.float64(x) if type(x) is float else x


# IEEE inf and NaN stay; sums may be reordered, multiply-adds fused, divisions turned into products with the reciprocal
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}


def inlined(function: Callable) -> Callable:
    """A small function, inlined wherever it is called so that loops over it become vector instructions."""
    if config.DISABLE_JIT:
        return _uncompiled(function)
    return register_jitable(**OPTIONS, forceinline=True)(function)


for equation in (
    neuron.two_decays, neuron.decay, neuron.first_moment, neuron.decay_by_tau, neuron.short_parts,
    neuron.short_phi_by_rates, neuron.flow, neuron.rewind,
    neuron.integrated_psp,
    neuron.integral, neuron.slope, neuron.crossing_slope, neuron.remaining_reset, neuron.least_after_crossing,
    neuron.peak_time, neuron.adjoint_flow, neuron.spike_jump, neuron.arrival_time_gradient, neuron.effect_time_gradient,
    neuron.arrival_offset,
):  # fmt: skip
    inlined(equation)


def jit(function: Callable | None = None, *, parallel: bool = False):
    """Compile with numba and keep the result on disk."""
    if function is None:
        return lambda function: jit(function, parallel=parallel)
    if config.DISABLE_JIT:
        return _uncompiled(function)
    compiled = numba.njit(parallel=parallel, nogil=True, **OPTIONS)(function)
    keep(compiled)
    return compiled


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


_lost_threads = False


def _note_fork() -> None:
    """In the child of a fork: OpenMP's threads stay behind, and numba would end the process that asks for them."""
    global _lost_threads
    with contextlib.suppress(ValueError):  # numba has started no threads
        _lost_threads = numba.threading_layer() == "omp"  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def threads() -> Iterator[None]:
    """Run numba with as many threads as torch, and give the caller's number back.

    Raises:
        RuntimeError: in a fork of a process that has used numba's OpenMP threads.
    """
    if config.DISABLE_JIT:
        with np.errstate(all="ignore"):
            yield
        return
    if _lost_threads:
        raise RuntimeError(
            "kernels cannot run in a fork of a process that has used them: OpenMP's threads do not survive it. Start "
            "processes with the method 'spawn' or 'forkserver', as in DataLoader(multiprocessing_context='spawn'), or set "
            "NUMBA_THREADING_LAYER=workqueue"
        )
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
