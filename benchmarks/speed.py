"""One job on this package and on every installed peer, in one run: seconds per epoch, peak memory, work and precision.

    pip install -e ".[peers]" && EVENTPROP_DATA=../shared/data python benchmarks/speed.py

The job is in ``contenders``: 784-350-10 on latency-coded MNIST, batch 64, float32; forward, backward and Adam, data in memory.
Every contender lives in a process of its own, and they take turns of a second, so that a noisy machine is noisy for all. In a
turn one step follows the other, as in training. What is reported is the median over all steps but those of the first fifth of
a turn, when caches are cold and threads asleep, and but those of a warm-up, times the 937.5 steps of an epoch. Peak memory is
what a step adds, at its peak, to what the process holds between steps: network, optimizer, data, libraries and compiled code
are left out (Linux).

Work and precision: for the solvers of this package at several step lengths, the time per step and how far the gradient of the
first layer is from that of the event-driven solver in float64.

Writes results/speed.json and results/speed.md, and results/work_precision.json with its picture, which ``--precision`` makes
alone; refuses to replace another machine's results.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from contenders import ADAPTERS, Job
from provenance import machine, peak_memory, provenance

RESULTS = Path(__file__).parent.parent / "results"
BATCH, EPOCH = 64, 60_000
TURN, COLD = 1.0, 0.2  # s


def make_job(batches: int) -> Job:
    """The first ``batches`` of a random order, and the weights that ``mnist_gray`` ends with."""
    import torch
    from trained import trained

    from eventprop import latency_encode

    _, network, dataset = trained("mnist_gray")
    rows = torch.randperm(len(dataset.train.labels), generator=torch.Generator().manual_seed(0))[: batches * BATCH]
    times = latency_encode(dataset.train.images[rows]).to_times(1)[..., 0]
    return Job(
        times=times.unflatten(0, (batches, BATCH)).numpy(),
        labels=dataset.train.labels[rows].unflatten(0, (batches, BATCH)).numpy(),
        weights=tuple(weight.detach().t().numpy() for weight in network.parameters()),
    )


class Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.first, self.times = name, [], []
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, job, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process ends the waiting for it
        self.skipped: str | None = self._pipe.recv()

    def turn(self, seconds: float) -> list[float]:
        """Seconds of each step of a turn of at least two steps."""
        self._pipe.send(seconds)
        return self._pipe.recv()

    def finish(self, slow: bool) -> dict[str, float]:
        """End the process; what a row of the table has besides times. Memory of a ``slow`` one is measured once."""
        self._pipe.send(None)
        self._pipe.send(1 if slow else 3)
        rest = self._pipe.recv()
        self._process.join()
        return rest


def _work(name: str, job: Job, pipe) -> None:
    try:
        adapter = importlib.import_module(f"contenders.{name}")
        for package in adapter.PACKAGES:
            version(package)
    except PackageNotFoundError as error:
        pipe.send(f"{error.name} is not installed")
        return
    step = adapter.training_step(job)
    pipe.send(None)
    batches = itertools.cycle(range(len(job.labels)))
    while (seconds := pipe.recv()) is not None:
        times = []
        while sum(times) < seconds or len(times) < 2:
            begin = time.perf_counter()
            step(next(batches))
            times.append(time.perf_counter() - begin)
        pipe.send(times)
    rest = {"peak_mib": statistics.median(peak_memory(lambda: step(0)) for _ in range(pipe.recv()))}
    if hasattr(step, "hidden_spikes"):
        rest["hidden_spikes_per_image"] = step.hidden_spikes()
    pipe.send(rest)


def compare(names: list[str], job: Job, turns: int, patience: float) -> dict[str, dict[str, Any]]:
    """Alternate the contenders. The first turn is a warm-up. One that needs more than ``patience`` seconds for its
    second step (the first may compile) stops there, and that step is what is reported."""
    rows: dict[str, dict[str, Any]] = {}
    contenders = []
    for name in names:
        contender = Contender(name, job)
        print(f"{name}: {contender.skipped or 'ready'}", file=sys.stderr)
        if contender.skipped:
            rows[name] = {"skipped": contender.skipped}
        else:
            contenders.append(contender)
    for contender in contenders:
        contender.first = contender.turn(0.0)
    quick = [contender for contender in contenders if contender.first[1] < patience]
    for turn in range(turns + 1):
        for contender in quick:
            times = contender.turn(TURN)
            cold = max(1, int(np.searchsorted(np.cumsum(times), COLD)))
            contender.times += times[cold:] if turn > 0 else []
    for contender in contenders:
        adapter = importlib.import_module(f"contenders.{contender.name}")
        times = contender.times or contender.first[1:]
        low, median, high = statistics.quantiles(times) if len(times) > 1 else times * 3
        rows[contender.name] = {
            "seconds_per_epoch": median * EPOCH / BATCH,
            "ms_per_step": [1e3 * x for x in (low, median, high)],
            "steps": len(times),
            **contender.finish(slow=contender not in quick),
            "versions": {package: version(package) for package in adapter.PACKAGES},
            "not_equal": adapter.NOT_EQUAL,
        }
    return rows


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
    rows = report["contenders"]
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
    parser.add_argument("--only", nargs="+", choices=ADAPTERS, help="print these and event_driven, write nothing")
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
    names = [name for name in ADAPTERS if arguments.only is None or name in (*arguments.only, "event_driven")]
    job = make_job(20)
    RESULTS.mkdir(exist_ok=True)
    if not arguments.precision:
        report = {
            **provenance(),
            "events_per_image": float(np.isfinite(job.times).sum(2).mean()),
            "contenders": compare(names, job, arguments.turns, arguments.patience),
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
