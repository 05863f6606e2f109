"""Compiled kernels: where they are kept and when not, how they run uncompiled, and what a fork may do with them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import diverse, random_spikes, smooth

import eventprop
from eventprop import (
    LIF,
    EventDriven,
    LeakyReadout,
    SpikingConv2d,
    SpikingLayer,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
)
from eventprop.solvers.compilation import cache, jit
from surrogate_baseline import neurons
from surrogate_baseline.solver import SurrogateTimeStepped
from surrogate_baseline.surrogates import SURROGATES

# a kernel in a copy of the package that takes an equation, and a number of another module
PROBE = """
import json, os, sys, warnings
from pathlib import Path
from eventprop.solvers.compilation import cache, jit
from eventprop.probe import rise

found = {}
for name, environment in json.loads(sys.argv[1]).items():
    for variable in ("XDG_CACHE_HOME", "HOME"):
        os.environ.pop(variable, None)
    os.environ.update(environment)
    cache.config.CACHE_DIR = environment.get("NUMBA_CACHE_DIR", "")
    cache.config.CACHE_LOCATOR_CLASSES = environment.get("NUMBA_CACHE_LOCATOR_CLASSES", "")
    cache.cache_directory.cache_clear()
    cache._warn.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kernel, other = jit.jit(rise), jit.jit(rise)
    found[name] = kernel(3.0), sum(kernel.stats.cache_hits.values()), [str(warning.message) for warning in said]
print(json.dumps(found))
"""
KERNEL = """
from .core.neuron import slope
from .solvers.tape import MAX_SPIKES_PER_SAMPLE

def rise(i):
    return slope(i, 0.0, 1.0) + MAX_SPIKES_PER_SAMPLE
"""
LIMIT = 2**20  # tape.MAX_SPIKES_PER_SAMPLE


def test_an_edited_equation_is_never_served_from_a_cache(tmp_path):
    """Nor an edited number that kernels take. Where the cache cannot be written, nothing is kept, which is said once; numba's
    other place, __pycache__ beside the sources, could be written each time."""
    package, work = tmp_path / "copy" / "eventprop", tmp_path / "work"
    shutil.copytree(Path(eventprop.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "probe.py").write_text(KERNEL)
    work.mkdir()
    (tmp_path / "file").write_text("in the place of a folder")
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home")}
    kept = {
        "xdg": {"XDG_CACHE_HOME": str(tmp_path / "xdg")},
        "numba": {"NUMBA_CACHE_DIR": str(tmp_path / "numba")},
        "empty": {"XDG_CACHE_HOME": "", **home},
    }
    lost = {
        "file": {"XDG_CACHE_HOME": str(tmp_path / "file")},
        "unusable": {"NUMBA_CACHE_DIR": "/proc/nowhere"},
        "elsewhere": {"NUMBA_CACHE_LOCATOR_CLASSES": "InTreeCacheLocator", **home},
        "homeless": {"HOME": "nowhere"},
    }

    def results() -> dict[str, tuple]:
        command = [sys.executable, "-c", PROBE, json.dumps(kept | lost)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "copy")}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def edit(name: str, old: str, new: str) -> None:
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))

    for hits, expected in ((0, 3 + LIMIT), (1, 3 + LIMIT), (0, 6 + LIMIT), (0, 7)):
        for name, (value, loaded, said) in results().items():
            assert value == expected, name
            assert loaded == (hits if name in kept else 0), name
            assert len(said) == (0 if name in kept else 1), said
            assert all("set NUMBA_CACHE_DIR to a folder that can be written" in message for message in said)
        if hits and expected == 3 + LIMIT:
            edit("core/neuron.py", "return (i - v) / tau_mem", "return 2.0 * (i - v) / tau_mem")
        elif expected == 6 + LIMIT:
            edit("solvers/tape.py", "MAX_SPIKES_PER_SAMPLE = 2**20", "MAX_SPIKES_PER_SAMPLE = 1")
    assert not list(work.iterdir())  # no cache in the working directory
    assert not list(package.rglob("*.nbi"))  # nor beside the sources
    assert (tmp_path / "home" / ".cache" / "eventprop").is_dir()


def test_what_was_imported_before_an_edit_is_not_kept_under_the_digest_after_it(tmp_path):
    """As in a notebook, where the package is imported, then edited, and only then first used."""
    package = tmp_path / "copy" / "eventprop"
    shutil.copytree(Path(eventprop.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import pathlib, sys
import eventprop
path = pathlib.Path(eventprop.__file__).parent / "solvers/tape.py"
assert "copy" in path.parts
if sys.argv[1] == "edit":
    path.write_text(path.read_text() + "# edited\\n")
import eventprop.solvers.compilation.jit
import numpy as np
eventprop.solvers.compilation.jit.is_finite(np.ones(2))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "copy"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for how, kept in (("edit", 0), ("leave", 1)):
        subprocess.run([sys.executable, "-c", script, how], cwd=tmp_path, env=environment, check=True)
        assert len(list((tmp_path / "cache").rglob("*.nbi"))) == kept


def twice(x):
    return 2 * x


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where compiled kernels are kept in this test."""
    monkeypatch.setattr(cache.config, "CACHE_DIR", str(tmp_path))
    cache.cache_directory.cache_clear()
    cache._warn.cache_clear()
    yield tmp_path
    cache.cache_directory.cache_clear()
    cache._warn.cache_clear()


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04damaged", None], ids=["empty", "damaged", "cut"])
def test_a_damaged_entry_is_compiled_again(kept, suffix, content):
    assert jit.jit(twice)(3.0) == 6.0
    (file,) = kept.rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    again, after = jit.jit(twice), jit.jit(twice)
    assert again(3.0) == after(3.0) == 6.0
    assert not again.stats.cache_hits
    assert after.stats.cache_hits


def test_the_code_of_another_signature_is_not_run(kept):
    """Two processes that save at once, one for float32 and one for float64, can both write the first file."""
    for x in (3.0, 3):
        assert jit.jit(twice)(x) == 6
    first, second = sorted(kept.rglob("*.nbc"))
    second.write_bytes(first.read_bytes())
    assert [jit.jit(twice)(x) for x in (3.0, 3)] == [6, 6]


def test_a_full_disk_costs_a_compilation_and_a_warning(kept, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="cannot be written, so every process compiles the kernels again"):
        assert jit.jit(twice)(3.0) == 6.0
    assert jit.jit(twice)(3.0) == 6.0  # said once


def results() -> dict[str, torch.Tensor]:
    """Outputs and gradients of everything that has kernels."""
    torch.manual_seed(0)
    lif, exact, grid, baseline = LIF(), EventDriven(40.0), TimeStepped(40.0, 0.5), SurrogateTimeStepped(40.0, 0.5)
    float64 = {"dtype": torch.float64}
    modules = {
        "linear": SpikingLinear(4, 5, solver=exact, **float64),
        "equal": SpikingLinear(4, 5, solver=exact, neuron=LIF(10.0, 10.0), **float64),
        "recurrent": SpikingRecurrent(4, 5, solver=exact, **float64),
        "different": SpikingLinear(4, 5, solver=exact, neuron=diverse(5), **float64),
        "convolution": SpikingConv2d(1, 2, 2, solver=exact, **float64),
        "max": LeakyReadout(4, 5, solver=exact, **float64),
        "mean": LeakyReadout(4, 5, solver=exact, reduce="mean", **float64),
        "grid": SpikingLinear(4, 5, solver=grid, **float64),
        "euler": SpikingLinear(4, 5, solver=TimeStepped(40.0, 0.5, scheme="euler"), **float64),
        "layer": SpikingLayer(torch.nn.Linear(4, 5, bias=False, **float64), solver=grid),
        "surrogate": torch.nn.Sequential(
            SpikingLinear(4, 5, solver=baseline, **float64), LeakyReadout(5, 2, solver=baseline, **float64)
        ),
        "float32": SpikingLinear(4, 5, solver=exact),
    }
    found = {}
    for name, module in modules.items():
        weight = next(module.parameters())
        torch.nn.init.normal_(weight, 3.0 * lif.minimum_weight, lif.minimum_weight)
        spikes = random_spikes(3, 4, dtype=weight.dtype)
        spikes.time.requires_grad_(name != "surrogate")
        out = module(spikes.reshape(1, 2, 2) if name == "convolution" else spikes)
        loss = out.pow(2).sum() if isinstance(out, torch.Tensor) else smooth(out)
        loss.backward()
        found[name] = torch.cat([loss.detach()[None], weight.grad.flatten()])
        if spikes.time.requires_grad:
            found[f"{name} time"] = spikes.time.grad
    for name, surrogate in SURROGATES.items():
        x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        neurons.LIF(surrogate=surrogate())(x).sum().backward()
        found[name] = x.grad
    return found


def test_without_compilation_the_results_are_the_same(tmp_path):
    """As with NUMBA_DISABLE_JIT=1, to debug kernels or measure their coverage."""
    code = "import sys, torch, test_jit; torch.save(test_jit.results(), sys.argv[1])"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, str(tmp_path / "results.pt")]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    uncompiled = torch.load(tmp_path / "results.pt", weights_only=True)
    for name, value in results().items():
        assert value.abs().max() > 0, name
        # rounding: compiled sums are reordered and multiply-adds fused
        rtol = 1e-12 if value.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            uncompiled[name], value, rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


FORK = """
import os, sys, torch
from torch.utils.data import DataLoader
from eventprop import EventDriven, Spikes, SpikingLinear

torch.manual_seed(0)  # a spawned process makes a layer of its own

class Encoded(torch.utils.data.Dataset):
    layer = SpikingLinear(3, 2, solver=EventDriven(40.0))
    def __len__(self):
        return 2
    def __getitem__(self, k):
        return self.layer(Spikes.from_times(torch.ones(1, 3))).count().detach()

if __name__ == "__main__":
    data = Encoded()
    expected = data[0]
    if sys.argv[1] == "fork":
        if (child := os.fork()) == 0:
            assert torch.equal(data[0], expected)
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for batch in DataLoader(data, num_workers=1, multiprocessing_context=sys.argv[2]):
        assert torch.equal(batch[0], expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("arguments", "layer", "works"),
    [
        (["fork"], "omp", False),
        (["fork"], "workqueue", True),
        (["workers", "fork"], "omp", False),
        (["workers", "spawn"], "omp", True),
    ],
    ids=["fork", "fork-workqueue", "workers", "workers-spawn"],
)
def test_a_fork_works_or_says_why_not(tmp_path, arguments, layer, works):
    (tmp_path / "use.py").write_text(FORK)
    done = subprocess.run(
        [sys.executable, tmp_path / "use.py", *arguments],
        env=os.environ | {"NUMBA_THREADING_LAYER": layer}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == works, done.stderr
    assert works or "RuntimeError: kernels cannot run in a fork of a process that has used them" in done.stderr


GRADIENTS = """
import torch
from torch.nn.functional import cross_entropy
from eventprop import EventDriven, LeakyReadout, SpikingLinear, SpikingRecurrent, Spikes, TimeStepped

for solver in (EventDriven(40.0), TimeStepped(40.0, 1.0)):
    torch.manual_seed(0)
    layers = [SpikingLinear(100, 70, solver=solver), SpikingRecurrent(70, 40, solver=solver, delay=20.0)]
    layers.append(LeakyReadout(40, 10, solver=solver))
    network = torch.nn.Sequential(*layers)
    spikes = Spikes.from_times(40.0 * torch.rand(64, 100))
    cross_entropy(network(spikes), torch.arange(64) % 10).backward()
    for parameter in network.parameters():
        print(parameter.grad.numpy().tobytes().hex())
"""


def test_the_process_that_compiles_computes_what_later_ones_do(tmp_path):
    """To the bit, in float32: two runs of one seed are equal, also where the first of them compiles."""
    command, environment = [sys.executable, "-c", GRADIENTS], os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first.count("\n") == 8
    assert first == second
