"""The test accuracy of a trained network: ``python -m surrogate_baseline.evaluate checkpoint=runs/.../checkpoint.pt``.

Options: those of ``eventprop.evaluate``: ``batch_size=500``, ``device=cpu``, and the keys of the group ``data``.
"""

from __future__ import annotations

import sys

from eventprop.evaluate import run
from eventprop.training.command_line import command

from .config import parse

if __name__ == "__main__":
    command(lambda: run(sys.argv[1:], parse), __doc__)
