"""Steps on long, dense streams of events, by layers of this package and by the peers that have recurrent ones, in one run.

    pip install -e ".[peers]" && python benchmarks/sequence.py

700 inputs, 8,000 arrivals in 1,000 ms, 256 neurons with about 6 spikes each, a readout of the maximum over 20 classes; batch
32, float32, forward and backward. Contenders take turns (``turns``). All have the same weights, scaled to the units of each
package; how many spikes their neurons emit with them is in the table. Then, for some of them, how time and memory grow with the
window at equal rates, the neurons, the arrivals at equal hidden spikes, and the hidden spikes.

Writes results/sequence.json and results/sequence.md, in two parts that ``--part`` makes alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import SEQUENCES, SequenceJob
from contenders.layers import made
from provenance import provenance
from turns import compare

from eventprop import Spikes

RESULTS = Path(__file__).parent.parent / "results" / "sequence.json"
BATCH, INPUTS, CLASSES = 32, 700, 20
GROWING = (
    "layers:SpikingLinear", "layers:SpikingRecurrent", "layers:all different", "layers:TimeStepped", "snntorch:plain",
    "snntorch:recurrent",
)  # fmt: skip
GROWTH: dict[str, list[dict[str, float]]] = {
    "window, ms": [{"t_end": t, "arrivals": 8 * t, "spikes": 6e-3 * t} for t in (100, 1000, 10_000)],
    "neurons": [{"neurons": n} for n in (64, 256, 1024)],
    "arrivals": [{"arrivals": n} for n in (2000, 8000, 32_000)],
    "spikes per neuron": [{"spikes": n} for n in (2, 6, 18)],
}


def make_job(t_end: float = 1000.0, arrivals: int = 8000, neurons: int = 256, spikes: float = 6.0) -> SequenceJob:
    """Random arrivals and weights, those of the layer as large as it takes for that many ``spikes`` per neuron."""
    generator = np.random.default_rng(0)
    time = np.sort(t_end * generator.random((BATCH, arrivals), dtype=np.float32), axis=1)
    index = generator.integers(INPUTS, size=time.shape)
    first, back, last = (
        generator.standard_normal(shape, dtype=np.float32)
        for shape in ((INPUTS, neurons), (neurons, neurons), (neurons, CLASSES))
    )
    trains = Spikes(torch.from_numpy(time), torch.from_numpy(index), INPUTS)

    def job(std: float) -> SequenceJob:
        weights = (std * first, 0.1 * back * (256 / neurons) ** 0.5, last)
        return SequenceJob(time, index, np.arange(BATCH)[None] % CLASSES, weights, t_end)

    low, high = 0.01, 10.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        with torch.no_grad():
            found = float(made(job(middle), "SpikingLinear")[0](trains).count().float().mean())
        low, high = (middle, high) if found < spikes else (low, middle)
    return job(middle)


def table(rows: dict[str, dict[str, Any]]) -> str:
    plain = rows["layers:SpikingLinear"]["seconds"]
    lines = ["| contender | s per step | times plain | peak memory, MiB | spikes per neuron |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        if "skipped" in row:
            lines.append(f"| {name} | skipped: {row['skipped']} | | | |")
            continue
        label = " ".join([name, *row["versions"].values()])
        lines.append(
            f"| {label} | {row['seconds']:.3g} | {row['seconds'] / plain:.3g} | {row['peak_mib']:,.0f} | "
            f"{row['hidden_spikes']:.1f} |"
        )
    return "\n".join(lines)


def growth_table(growth: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"| s per step (MiB) | {' | '.join(name.split(':', 1)[1] + ', ' + name.split(':')[0] for name in GROWING)} |"
    ]
    lines.append("|---" * (len(GROWING) + 1) + "|")
    for what, sizes in growth.items():
        for size in sizes:
            rows = (size["rows"][name] for name in GROWING)
            cells = ("" if "skipped" in row else f"{row['seconds']:.3g} ({row['peak_mib']:,.0f})" for row in rows)
            lines.append(f"| {size['size']:g} {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps on long, dense streams of events.")
    parser.add_argument("--only", nargs="+", choices=SEQUENCES, help="print these and the plain layer, write nothing")
    parser.add_argument(
        "--part", choices=("contenders", *GROWTH), help="measure this alone, keep the rest of the results"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds of a second step, after which one stops")
    arguments = parser.parse_args()
    options = {"turns": arguments.turns, "patience": arguments.patience}
    if arguments.only is not None:
        print(table(compare(dict.fromkeys(("layers:SpikingLinear", *arguments.only)), make_job(), **options)))
        return
    report = json.loads(RESULTS.read_text()) if arguments.part and RESULTS.exists() else {"growth": {}}
    report |= provenance()
    if arguments.part in (None, "contenders"):
        report["contenders"] = compare(SEQUENCES, make_job(), **options)
    for what, sizes in GROWTH.items():
        if arguments.part in (None, what):
            report["growth"][what] = [
                {"size": next(iter(size.values())), "rows": compare(GROWING, make_job(**size), **options)}
                for size in sizes
            ]
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    tables = [table(report["contenders"])] if "contenders" in report else []
    tables += [growth_table(report["growth"])] if report["growth"] else []
    RESULTS.with_suffix(".md").write_text("\n\n".join(tables) + "\n")
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
