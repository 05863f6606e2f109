"""The package as a whole: what the README shows runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eventprop

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


def test_the_code_of_the_readme_runs(capsys):
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].strip().count("\n") < 15
    names: dict = {}
    for block in blocks:
        exec(block, names)
    error = float(re.search(r"largest relative error (\S+)", capsys.readouterr().out).group(1))
    assert error <= 1e-7


def test_the_readme_is_short_and_has_the_results_as_they_are():
    readme = README.read_text()
    assert readme.count("\n") < 200
    script = README.parent / "benchmarks" / "results_table.py"
    assert readme == runpy.run_path(str(script))["rebuilt"](readme), "run python benchmarks/results_table.py"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_code_of_the_documentation_runs(page, tmp_path, monkeypatch):
    """One namespace for each page."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(block, names)


@pytest.mark.parametrize("name", eventprop.__all__)
def test_public_names_are_documented(name):
    assert getattr(eventprop, name).__doc__
    assert re.search(rf"^\.\. auto(class|function):: eventprop\.{name}$", (DOCS / "api.md").read_text(), re.MULTILINE)


def test_every_promise_that_tests_cite_is_written_down():
    """And each promise names test files that there are."""
    page, tests = (DOCS / "promises.md").read_text(), sorted(Path(__file__).parent.glob("*.py"))
    promised = set(re.findall(r"^\| (P\d+) ", page, re.MULTILINE))
    cited = {f"P{k}" for test in tests for k in re.findall(r"\bP(\d+)\b", test.read_text())}
    assert cited <= promised
    assert promised == {f"P{k}" for k in range(1, 11)}
    assert set(re.findall(r"`(\w+\.py)`", page)) <= {test.name for test in tests}


def test_importing_the_package_imports_neither_numba_nor_torchvision():
    """They take as long to import as torch itself, and not every use needs them."""
    code = (
        "import sys, eventprop; print([m for m in ('numba', 'torchvision', 'hydra', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_number_of_threads_stays_as_it_was_set():
    """Numba starts its threads in torch's pool and would set torch's number along with its own."""
    code = (
        "import torch; torch.set_num_threads(1); import numba\n"
        "from eventprop import EventDriven, Spikes, SpikingLinear\n"
        "SpikingLinear(1, 1, solver=EventDriven(40.0))(Spikes.from_times(torch.zeros(1, 1))); print(torch.get_num_threads())\n"
        "from eventprop.solvers.compilation.jit import threads\nwith threads(): print(numba.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
