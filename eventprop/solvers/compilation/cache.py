"""Compiled kernels on disk: in the user's cache directory, in a folder whose name holds a digest of the sources, so that an
edited equation is never served from an old cache. Where that folder cannot be written, nothing is kept."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

from .sources import AT_IMPORT, PACKAGE, digest

config: Any = numba.config  # its settings are set at run time, unknown to type checkers


def keep(dispatcher: Any) -> None:
    """Keep what ``dispatcher`` compiles, in this package's folder or nowhere: the other places that numba would choose do not
    know the digest."""
    source, saved = Path(dispatcher.py_func.__code__.co_filename), config.CACHE_DIR
    directory = cache_directory(PACKAGE if source.is_relative_to(PACKAGE) else source.parent)
    if not _unchanged(source):
        return
    cache = None
    if directory is not None:
        config.CACHE_DIR = str(directory)
        try:
            cache = _Cache(dispatcher.py_func)
        except RuntimeError:  # numba can write in none of its places
            pass
        finally:
            config.CACHE_DIR = saved
    if cache is None or Path(cache.cache_path).parent != directory:
        _warn(directory)
    else:
        dispatcher._cache = cache


@functools.cache
def cache_directory(folder: Path) -> Path | None:
    """Where to keep what is compiled from the sources in ``folder`` and in this package; None if no such place is known.

    Relative paths count as not set, as the XDG Base Directory Specification says: they would follow the working directory.
    """
    variable, usual = ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    base = Path(os.environ.get(variable, ""))
    if config.CACHE_DIR:  # NUMBA_CACHE_DIR
        base = Path(config.CACHE_DIR).absolute()
    elif not base.is_absolute():
        base = Path(os.path.expanduser("~"), usual)
    return base / "eventprop" / digest(folder)[:16] if base.is_absolute() else None


@functools.cache
def _unchanged(source: Path) -> bool:
    """Whether the package is still what was imported, when the kernels in ``source`` are; asked once for each file. Else, as in
    a notebook beside an editor, nothing is kept: it would be found by the digest of other equations."""
    return digest() == AT_IMPORT


class _Cache(FunctionCache):
    """What is compiled of one function. Whatever goes wrong on disk costs a compilation, and nothing else."""

    def load_overload(self, sig, target_context):
        # whatever becomes of damaged bytes
        with contextlib.suppress(Exception):
            found = super().load_overload(sig, target_context)
            # processes that save at the same time can leave the one's code under the other's signature
            if found is None or found.signature.args == sig:
                return found
        with contextlib.suppress(OSError):
            self.flush()
        return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError:
            _warn(Path(self.cache_path).parent)


@functools.cache
def _warn(directory: Path | None) -> None:
    """Say, once, that compiled kernels are lost with the process."""
    place = "no cache directory is known" if directory is None else f"{directory} cannot be written"
    warnings.warn(
        f"{place}, so every process compiles the kernels again, which takes 20 to 30 s; set NUMBA_CACHE_DIR to a folder that "
        f"can be written",
        RuntimeWarning,
        stacklevel=4,
    )
