"""One job on this package and on every installed peer, in one run: seconds per epoch, peak memory, work and precision.

    pip install -e ".[peers]" && EVENTPROP_DATA=../shared/data python benchmarks/speed.py

The job is in ``contenders``: 784-350-10 on latency-coded MNIST, batch 64, float32; forward, backward and Adam, data in memory.
Every contender lives in a process of its own, and they take turns (``turns``); what is reported is the median step times the
937.5 steps of an epoch. Beside them stand epochs of the package's own training loop: of ``mnist_gray`` whole ones, with the
same weights and state of Adam, and of slower experiments the first part of one, times what it is short of.

Work and precision: for the solvers of this package at several step lengths, the time per step and how far the gradient of the
first layer is from that of the event-driven solver in float64.

Writes results/speed.json and results/speed.md, and results/work_precision.json with its picture, which ``--precision`` makes
alone; refuses to replace another machine's results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import ADAPTERS, Job
from contenders.training import EPOCHS
from provenance import machine, provenance
from turns import compare

RESULTS = Path(__file__).parent.parent / "results"
BATCH, EPOCH = 64, 60_000
CONTENDERS = (*ADAPTERS, *(f"training:{name}" for name in EPOCHS))


def make_job(batches: int) -> Job:
    """The first ``batches`` of a random order, and the weights that ``mnist_gray`` ends with."""
    import torch
    from trained import trained

    from eventprop import latency_encode

    _, network, dataset, optimizer = trained("mnist_gray")
    rows = torch.randperm(len(dataset.train.labels), generator=torch.Generator().manual_seed(0))[: batches * BATCH]
    times = latency_encode(dataset.train.images[rows]).to_times(1)[..., 0]
    return Job(
        times=times.unflatten(0, (batches, BATCH)).numpy(),
        labels=dataset.train.labels[rows].unflatten(0, (batches, BATCH)).numpy(),
        weights=tuple(weight.detach().t().numpy() for weight in network.parameters()),
        moments=tuple(
            (optimizer.state[w]["exp_avg"].numpy(), optimizer.state[w]["exp_avg_sq"].numpy())
            for w in network.parameters()
        ),
    )


def measured(names: list[str], job: Job, turns: int, patience: float) -> dict[str, Any]:
    """What ``compare`` returns, in the units of this job; the epochs of training apart."""
    rows = compare(names, job, turns, patience)
    for row in rows.values():
        if "seconds" in row:
            row["seconds_per_epoch"] = row.pop("seconds") * EPOCH / BATCH
        if "hidden_spikes" in row:
            row["hidden_spikes_per_image"] = row.pop("hidden_spikes")
    return {
        "contenders": {name: row for name, row in rows.items() if name in ADAPTERS},
        "training": {name: row for name, row in rows.items() if name not in ADAPTERS},
    }


def work_precision(job: Job, repeats: int = 15) -> list[dict[str, Any]]:
    """Time per step and gradient error of this package's solvers, on a trained network."""
    import torch

    from eventprop import LIF, EventDriven, Spikes, TimeStepped
    from eventprop.losses import MeanVoltage
    from eventprop.training.networks import fully_connected
    from surrogate_baseline.solver import SurrogateTimeStepped

    loss, neuron = MeanVoltage(), LIF(job.tau_mem, job.tau_syn, job.v_th)
    trains = [Spikes.from_times(torch.from_numpy(times)) for times in job.times]
    labels = torch.from_numpy(job.labels)

    def network(solver, dtype):
        net = fully_connected(job.inputs, job.classes, loss, neuron, solver, hidden=[job.hidden], dtype=dtype)
        for parameter, weight in zip(net.parameters(), job.weights, strict=True):
            parameter.data.copy_(torch.from_numpy(weight).t())
        return net

    def gradient(solver, dtype) -> tuple[torch.Tensor, list[float]]:
        net = network(solver, dtype)
        times, total = [], torch.zeros((), dtype=torch.float64)
        for k in range(max(repeats, 10)):
            begin = time.perf_counter()
            net.zero_grad()
            loss(net(trains[k % 10].to(dtype)), labels[k % 10]).backward()
            times.append(time.perf_counter() - begin)
            if k < 10:
                total = total + net[0].weight.grad.double()
        return total, times

    reference, _ = gradient(EventDriven(job.t_end), torch.float64)
    rows = []
    solvers: list[tuple[str, float | None, Any]] = [("event-driven", None, EventDriven(job.t_end))]
    for dt in (2.0, 1.0, 0.5, 0.2, 0.1):
        solvers += [
            ("grid, exponential", dt, TimeStepped(job.t_end, dt)),
            ("grid, euler", dt, TimeStepped(job.t_end, dt, scheme="euler")),
            ("grid, surrogate", dt, SurrogateTimeStepped(job.t_end, dt)),
        ]
    for name, dt, solver in solvers:
        found, times = gradient(solver, torch.float32)
        error = float((found - reference).norm() / reference.norm())
        rows.append({"solver": name, "dt": dt, "ms": 1e3 * statistics.median(times), "gradient_error": error})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from eventprop.tools.plots import plot_work_precision

    ax = plot_work_precision(
        [{"series": r["solver"], "ms": r["ms"], "error": r["gradient_error"], "dt": r["dt"]} for r in rows]
    )
    ax.set_title("Step lengths: 2, 1, 0.5, 0.2 and 0.1 ms", fontsize=9, loc="right")
    ax.figure.savefig(path, dpi=150)


def table(report: dict[str, Any]) -> str:
    rows = report["contenders"] | report["training"]
    reference = rows["event_driven"]["seconds_per_epoch"]
    lines = [
        "| contender | s per epoch | times event-driven | peak memory, MiB | hidden spikes | what is not equal |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "skipped" in row:
            lines.append(f"| {name} | skipped: {row['skipped']} | | | | |")
            continue
        label = " ".join([name, *row["versions"].values()])
        seconds = row["seconds_per_epoch"]
        spikes = f"{row['hidden_spikes_per_image']:.0f}" if "hidden_spikes_per_image" in row else ""
        lines.append(
            f"| {label} | {seconds:.3g} | {seconds / reference:.3g} | {row['peak_mib']:.0f} | {spikes} | {row['not_equal']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="One job on this package and on every installed peer.")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="print these and event_driven, write nothing")
    parser.add_argument("--precision", action="store_true", help="measure work and precision alone")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds of a second step, after which one stops")
    arguments = parser.parse_args()
    path, precision, here = RESULTS / "speed.json", RESULTS / "work_precision.json", machine()
    for found in (path, precision):
        if found.exists() and (there := json.loads(found.read_text())["machine"]) != here:
            parser.error(
                f"{found} holds the results of another machine ({there}); this one is {here}. Move the file away first"
            )
    names = [name for name in CONTENDERS if arguments.only is None or name in (*arguments.only, "event_driven")]
    job = make_job(20)
    RESULTS.mkdir(exist_ok=True)
    if not arguments.precision:
        report = {
            **provenance(),
            "events_per_image": float(np.isfinite(job.times).sum(2).mean()),
            **measured(names, job, arguments.turns, arguments.patience),
        }  # fmt: skip
        print(table(report))
        if arguments.only is not None:
            return
        path.write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "speed.md").write_text(table(report) + "\n")
    rows = work_precision(job)
    precision.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")
    plot(rows, RESULTS / "work_precision.png")


if __name__ == "__main__":
    main()
