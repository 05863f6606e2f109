"""The package as a whole: what the README shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

import eventprop

README = Path(__file__).parent.parent / "README.md"


def test_the_code_of_the_readme_runs(capsys):
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    error = float(re.search(r"largest relative error (\S+)", capsys.readouterr().out).group(1))
    assert error <= 1e-7


def test_public_names():
    for name in (
        "LIF",
        "Spikes",
        "SpikingLinear",
        "SpikingLayer",
        "EventDriven",
        "TimeStepped",
        "GridSpikes",
        "latency_encode",
        "binary_latency_encode",
        "check_gradients",
    ):
        assert name in eventprop.__all__
        assert getattr(eventprop, name).__doc__


def test_importing_the_package_imports_neither_numba_nor_torchvision():
    """They take as long to import as torch itself, and not every use needs them."""
    code = (
        "import sys, eventprop; print([m for m in ('numba', 'torchvision', 'hydra', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
