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
        spikes = Spikes(time, torch.randint(784, time.shape), 784)
        sizes = [784, *[self.width] * self.depth]
        layers = [SpikingLinear(m, n, solver=EventDriven(self.t_end)) for m, n in itertools.pairwise(sizes)]
        for k, layer in enumerate(layers):
            # a steady current I makes about I (40 ms / tau_mem) spikes where it is well above the threshold; arrivals of
            # weight w at a rate r make a current w r tau_syn
            incoming = self.arrivals if k == 0 else self.drive * self.width  # in 40 ms
            scale = (0.7 + 0.5 * self.drive) * 40.0 / (5.0 * incoming)
            torch.nn.init.normal_(layer.weight, scale, 0.5 * scale)
        return torch.nn.Sequential(*layers), spikes


def step(network: torch.nn.Sequential, spikes: Spikes) -> Spikes:
    output = network(spikes)
    output.time[output.index >= 0].sum().backward()
    return output


SIZES: dict[str, tuple[str, list]] = {
    "batch": ("batch", [16, 32, 64, 128, 256]),
    "hidden width": ("width", [50, 100, 200, 400, 800]),
    "depth": ("depth", [1, 2, 4, 8]),
    "spikes per neuron": ("drive", [0.5, 1.0, 2.0, 4.0, 8.0]),
    "window length": ("t_end", [40.0, 80.0, 160.0, 320.0, 640.0]),
}


def measure(name: str, repeats: int = 15) -> dict:
    field, sizes = SIZES[name]
    problems = [replace(Problem(), **{field: size}).build() for size in sizes]
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
    return emitted, statistics.median(peak_memory(lambda: step(*job)) for _ in range(3))


def main() -> None:
    report: dict = {**provenance(), "time": {name: measure(name) for name in SIZES}}
    big = Problem(batch=512, width=350, spread=20.0)
    report["memory_by_window"] = {
        t_end: in_new_process(memory, replace(big, t_end=t_end)) for t_end in (40.0, 400.0, 4000.0)
    }
    report["memory_by_spikes"] = {
        drive: in_new_process(memory, replace(big, drive=drive)) for drive in (1.0, 2.0, 4.0, 8.0, 16.0)
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
