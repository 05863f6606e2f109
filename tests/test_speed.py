"""Guards against losing speed and memory, by counts and by a ratio within one run."""

from __future__ import annotations

import platform
import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional as F

from eventprop import LIF, EventDriven, Spikes, SpikingLinear
from eventprop.losses import MeanVoltage
from eventprop.training.networks import fully_connected

BATCH, INPUTS, HIDDEN, CLASSES, STEPS = 64, 784, 350, 10, 40


def arrivals() -> Spikes:
    generator = torch.Generator().manual_seed(0)
    time, _ = (20 * torch.rand(BATCH, 127, generator=generator)).sort(1)
    return Spikes(time, torch.randint(INPUTS, time.shape, generator=generator), INPUTS)


def test_a_training_step_costs_less_than_the_bare_products_of_a_dense_simulation():
    """Seen: 0.15 to 0.21. At 1, events would save nothing. The fastest of several turns: other processes only add time."""
    torch.manual_seed(0)
    spikes, target = arrivals(), torch.randint(CLASSES, (BATCH,))
    network = fully_connected(INPUTS, CLASSES, MeanVoltage(), LIF(), EventDriven(40.0), hidden=[HIDDEN])
    x, h, o = (torch.rand(STEPS * BATCH, size) for size in (INPUTS, HIDDEN, CLASSES))
    first, second = torch.rand(HIDDEN, INPUTS), torch.rand(CLASSES, HIDDEN)

    def step() -> None:
        F.cross_entropy(network(spikes), target).backward()

    def products() -> None:
        for a, b in ((x, first.T), (h, second.T), (o.T, h), (o, second), (h.T, x)):
            a @ b

    def seconds(function) -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    step()  # compiles
    turns = [(seconds(step), seconds(products)) for _ in range(10)]
    ours, theirs = (min(times) for times in zip(*turns, strict=True))
    assert ours < theirs


def test_what_backward_keeps_grows_with_spikes_and_not_with_the_window():
    def kept(layer: SpikingLinear) -> tuple[int, int]:
        """Emitted spikes in the longest row, and bytes kept for the backward pass."""
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = layer(arrivals())
        return output.time.shape[1], sum(storages.values())

    torch.manual_seed(0)
    layer = SpikingLinear(INPUTS, HIDDEN, solver=EventDriven(40.0))
    spikes, size = kept(layer)
    layer.solver = EventDriven(4000.0)
    longer_spikes, longer_size = kept(layer)
    per_spike = BATCH * (4 + 8 + 4 + 8)  # time, neuron, slope, arrival before it
    assert spikes > 50
    assert longer_size - size == (longer_spikes - spikes) * per_spike
    with torch.no_grad():
        layer.weight *= 3
    layer.solver = EventDriven(40.0)
    more_spikes, more_size = kept(layer)
    assert more_spikes > 2 * spikes
    assert more_size - size == (more_spikes - spikes) * per_spike


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems are left as they are")
def test_the_training_command_keeps_freed_memory():
    """Ten tensors of 9,766 pages, which are fetched anew for each otherwise; seen: those of one, for its alignment."""
    script = """
import resource, torch
from eventprop.training.process import keep_freed_memory
keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(10_000_000)
before = faults()
for _ in range(10):
    torch.ones(10_000_000)
assert faults() - before < 30_000, faults() - before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_subnormal_numbers_count_as_zero_in_all_threads():
    """Also in threads that have started before; and no longer after a training. A kernel of numba sees the bits."""
    script = """
import numba, numpy as np, torch
from eventprop import EventDriven, Spikes, SpikingLinear, tune_process
from eventprop.training.process import tuned_process

@numba.njit(parallel=True)
def tenth(x):
    y, thread = np.empty_like(x), np.empty(len(x), np.int64)
    for k in numba.prange(len(x)):
        y[k], thread[k] = x[k] * np.float32(0.1), numba.get_thread_id()
    return y.view(np.uint32), thread

layer = SpikingLinear(3, 5, solver=EventDriven(40.0))

def zero_in_every_thread():
    layer(Spikes.from_times(20 * torch.rand(64, 3)))  # starts the threads
    bits, thread = tenth(np.full(100_000, 1e-38, np.float32))
    return {bool((bits[thread == k] == 0).all()) for k in np.unique(thread)}

assert zero_in_every_thread() == {False}
with tuned_process():
    if numba.threading_layer() != "omp":
        raise SystemExit
    assert zero_in_every_thread() == {True}
assert zero_in_every_thread() == {False}
tune_process()
assert zero_in_every_thread() == {True}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
