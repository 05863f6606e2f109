"""How the cost of the event-driven solver grows: time against five sizes, memory against the window and the spikes.

    python benchmarks/scaling.py

Each size is doubled several times while the others stay; what is fitted is the slope of log(time) over log(size), with time
the median of forward and backward. Random spikes arrive at a constant rate, so a longer window has more of them; where
spikes per neuron grow, the weights do and the arrivals stay. Memory is what a step adds, at its peak, to what the process holds
between steps (Linux): for windows of 40 to 4,000 ms with the same spikes, and for more and more spikes. Writes
results/scaling.json.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from provenance import in_new_process, peak_memory, provenance

from eventprop import EventDriven, Spikes, SpikingLinear

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Problem:
    batch: int = 64
    width: int = 200
    depth: int = 1
    drive: float = 1.0
    t_end: float = 40.0
    arrivals: int = 127  # in 40 ms, of 784 inputs
    spread: float | None = None  # arrivals come within this time; None: in the whole window

    def build(self) -> tuple[torch.nn.Sequential, Spikes]:
        torch.manual_seed(0)
        window = self.t_end if self.spread is None else self.spread
        count = round(self.arrivals * (window / 40.0))
        time, _ = (window * torch.rand(self.batch, count)).sort(1)
        spikes = Spikes(time.requires_grad_(True), torch.randint(784, time.shape), 784)  # all layers do the same work
        sizes = [784, *[self.width] * self.depth]
        network, arriving = torch.nn.Sequential(), spikes
        for m, n in itertools.pairwise(sizes):
            layer = SpikingLinear(m, n, solver=EventDriven(self.t_end))
            # arrivals of weight w at a rate r make a current w r tau_syn
            rate = float(arriving.count().sum()) / self.batch / window
            scale = (0.9 + 0.5 * self.drive) / (5.0 * rate)
            torch.nn.init.normal_(layer.weight, scale, 0.5 * scale)
            emitted = layer(arriving).detach()
            if len(network):  # every layer emits as many spikes as the first
                for _ in range(5):
                    layer.weight.data *= (float(arriving.count().sum()) / float(emitted.count().sum())) ** 0.5
                    emitted = layer(arriving).detach()
            network.append(layer)
            arriving = emitted
        return network, spikes


def step(network: torch.nn.Sequential, spikes: Spikes) -> Spikes:
    output = network(spikes)
    output.time[output.index >= 0].sum().backward()
    return output


STEADY = Problem(
    t_end=160.0, arrivals=320
)  # the time that neurons take to their first spike is a small part of the window
SIZES: dict[str, tuple[str, list, Problem]] = {
    "batch": ("batch", [16, 32, 64, 128, 256], Problem()),
    "hidden width": ("width", [50, 100, 200, 400, 800], Problem()),
    "depth": ("depth", [1, 2, 4, 8], STEADY),
    "spikes per neuron": ("drive", [1.0, 2.0, 4.0, 8.0, 16.0], Problem()),
    "window length": ("t_end", [160.0, 320.0, 640.0, 1280.0], STEADY),
}


def measure(name: str, repeats: int = 15) -> dict:
    field, sizes, base = SIZES[name]
    problems = [replace(base, **{field: size}).build() for size in sizes]
    counts = [float(step(*problem).count().float().mean()) for problem in problems]
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(repeats):  # alternating
        for problem, mine in zip(problems, times, strict=True):
            begin = time.perf_counter()
            step(*problem)
            mine.append(time.perf_counter() - begin)
    medians = [statistics.median(mine) for mine in times]
    x = counts if field == "drive" else sizes
    slope = float(np.polyfit(np.log(x), np.log(medians), 1)[0])
    return {"sizes": x, "ms": [1e3 * m for m in medians], "spikes_per_neuron": counts, "slope": slope}


def memory(problem: Problem) -> tuple[int, float]:
    """Emitted spikes, and the peak of a step in MiB."""
    job = problem.build()
    emitted = int(step(*job).count().sum())  # compiles
    return emitted, statistics.median(peak_memory(lambda: step(*job)) for _ in range(15))


def main() -> None:
    report: dict = {**provenance(), "time": {name: measure(name) for name in SIZES}}
    big = Problem(batch=512, width=350, spread=20.0, drive=3.0)
    report["memory_by_window"] = {
        t_end: in_new_process(memory, replace(big, t_end=t_end)) for t_end in (40.0, 400.0, 4000.0)
    }
    report["memory_by_spikes"] = {
        drive: in_new_process(memory, replace(big, drive=drive)) for drive in (2.0, 4.0, 8.0, 16.0)
    }
    spikes, mib = zip(*report["memory_by_spikes"].values(), strict=True)
    report["memory_slope"] = float(np.polyfit(np.log(spikes), np.log(mib), 1)[0])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaling.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, row in report["time"].items():
        times = ", ".join(f"{x:g}: {ms:.2f}" for x, ms in zip(row["sizes"], row["ms"], strict=True))
        print(f"{name}: slope {row['slope']:.2f}; ms by size {times}")
    print("memory, MiB by window:", ", ".join(f"{t:g}: {m:.1f}" for t, (_, m) in report["memory_by_window"].items()))
    points = ", ".join(f"{s}: {m:.1f}" for s, m in report["memory_by_spikes"].values())
    print(f"memory by spikes: slope {report['memory_slope']:.2f}; MiB by spikes {points}")


if __name__ == "__main__":
    main()
