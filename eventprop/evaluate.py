"""The test accuracy of a trained network: ``python -m eventprop.evaluate checkpoint=runs/.../checkpoint.pt``.

Options: ``batch_size=500``, ``device=cpu``, and the keys of the group ``data``, such as ``data.root=DIR``. The result does not
depend on the batch size, except with random encoders, which draw for each batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eventprop.training.command_line import command, options
from eventprop.training.config import parse
from eventprop.training.loop import EVALUATION_BATCH, evaluate
from eventprop.training.restore import Parse, restore
from eventprop.training.task import encoded, load_data


def run(arguments: Sequence[str], parse: Parse) -> dict[str, float]:
    """Print and return what the network of a checkpoint reaches on the test data, beside what its summary says."""
    given = options(arguments, {"checkpoint": None, "batch_size": EVALUATION_BATCH, "device": "cpu", "data": {}})
    config, network, state = restore(given["checkpoint"], parse, given["data"], given["device"])
    test = encoded(config, load_data(config).test)
    metrics = evaluate(config, network, test, batch_size=given["batch_size"])
    print(
        f"{config.experiment} after {state['epoch']} epochs: test accuracy {100 * metrics['test_accuracy']:.2f} %, loss "
        f"{metrics['test_loss']:.4f}, {len(test)} samples"
    )
    summary = Path(given["checkpoint"]).parent / "summary.json"
    if summary.is_file():
        try:
            print(f"{summary} says {100 * json.loads(summary.read_text())['test_accuracy']:.2f} %")
        except (ValueError, KeyError, TypeError) as error:
            print(f"{summary} cannot be read: {error!r}")
    return metrics


if __name__ == "__main__":
    command(lambda: run(sys.argv[1:], parse), __doc__)
