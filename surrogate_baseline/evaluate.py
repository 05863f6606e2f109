"""The test accuracy of a trained network: ``python -m surrogate_baseline.evaluate checkpoint=runs/.../checkpoint.pt``."""

from __future__ import annotations

import sys

from eventprop.evaluate import run

from .config import parse

if __name__ == "__main__":
    run(sys.argv[1:], parse)
