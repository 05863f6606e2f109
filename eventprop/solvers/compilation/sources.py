"""A digest of the sources of this package, taken as it is imported: what is compiled later is compiled from these."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[2]  # the root of the package


def digest(folder: Path = PACKAGE) -> str:
    """Of this package's sources, and of those that lie in ``folder``."""
    state = hashlib.sha256()
    for source in sorted({*PACKAGE.rglob("*.py"), *folder.glob("*.py")}):
        state.update(source.read_bytes())
    return state.hexdigest()


AT_IMPORT = digest()
