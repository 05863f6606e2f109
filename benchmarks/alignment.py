"""Surrogate gradients beside the exact gradient of the same network, loss and spikes, over a training.

    EVENTPROP_DATA=../shared/data python benchmarks/alignment.py

Trains the network of an experiment on the grid with exact gradients. Before the first step and after some epochs, takes the
gradient of the loss over the same training samples by every surrogate and slope, and compares it, layer by layer, with the
exact gradient of that loss. The gradient of the continuous-time network (event-driven) is compared in the same way, so
that one sees how much of the difference is due to the grid. Writes results/alignment_EXPERIMENT.json and, as a
table, .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from provenance import provenance

from eventprop import EventDriven, TimeStepped
from eventprop.training.config import CONFIG_DIRECTORY, Config, parse
from eventprop.training.data import encode
from eventprop.training.loop import evaluate, train_epoch
from surrogate_baseline.alignment import align, gradients
from surrogate_baseline.solver import SurrogateTimeStepped
from surrogate_baseline.surrogates import SURROGATES

SLOPES = {
    "arctan": (0.5, 2.0, 5.0, 20.0),
    "sigmoid": (1.0, 4.0, 10.0, 25.0),
    "fast_sigmoid": (1.0, 5.0, 25.0, 100.0),
    "piecewise_quadratic": (0.5, 1.0, 2.0, 5.0),
    "triangular": (0.3, 1.0),
    "gaussian": (0.5, 2.0, 5.0, 10.0),
}
SAMPLES = 1024
RESULTS = Path(__file__).parent.parent / "results"


def study(config: Config, epochs: list[int]) -> list[dict]:
    exact_solver = config.solver
    if (
        not isinstance(exact_solver, TimeStepped)
        or exact_solver.scheme != "exponential"
        or exact_solver.grazing != "raw"
    ):
        raise ValueError(f"solver must be an exponential TimeStepped with grazing=raw, got {exact_solver}")
    torch.manual_seed(config.seed)
    dataset = config.data()
    training, test = (
        encode(split, config.encoder, torch.float32, "cpu", config.seed) for split in (dataset.train, dataset.test)
    )

    def build(solver):
        return config.model(training.num_inputs, dataset.num_classes, config.loss, config.neuron, solver)

    t_end, dt = exact_solver.t_end, exact_solver.dt
    solvers = {("event-driven", None): EventDriven(t_end)}
    for name, slopes in SLOPES.items():
        solvers |= {(name, k): SurrogateTimeStepped(t_end, dt, surrogate=SURROGATES[name](k)) for k in slopes}
    network = build(exact_solver)
    optimizer = config.optimizer.build(network.parameters())
    scheduler = config.optimizer.schedule(optimizer, max(epochs))
    batches = list(training.batches(128, torch.arange(SAMPLES)))
    rows = []
    for epoch in range(max(epochs) + 1):
        if epoch in epochs:
            accuracy = evaluate(config, network, test)["test_accuracy"]
            exact = gradients(network, config.loss, batches)
            for (name, slope), solver in solvers.items():
                other = build(solver)
                other.load_state_dict(network.state_dict())
                found = {"epoch": epoch, "test_accuracy": accuracy, "gradient": name, "slope": slope}
                aligned = align(gradients(other, config.loss, batches), exact)
                rows += [found | dataclasses.asdict(row) for row in aligned]
        if epoch < max(epochs):
            train_epoch(config, network, optimizer, training, epoch)
            scheduler.step()
    return rows


def table(rows: list[dict], epochs: list[int]) -> str:
    """Cosine / relative norm: a row for each gradient and slope, a column for each layer and epoch."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    columns = [(layer, epoch) for layer in layers for epoch in epochs]
    lines = [
        "| gradient | slope | " + " | ".join(f"{layer}, epoch {epoch}" for layer, epoch in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, slope in dict.fromkeys((row["gradient"], row["slope"]) for row in rows):
        found = {(r["layer"], r["epoch"]): r for r in rows if (r["gradient"], r["slope"]) == (name, slope)}
        cells = [f"{found[column]['cosine']:.3f} / {found[column]['relative_norm']:.3g}" for column in columns]
        lines.append(f"| {name} | {'' if slope is None else slope} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Surrogate gradients beside the exact gradient, over a training.")
    parser.add_argument("--experiment", default="mnist_gray")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 3, 6], help="after which to compare")
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as solver.dt=0.5")
    arguments = parser.parse_args()
    with initialize_config_dir(CONFIG_DIRECTORY, version_base="1.3"):
        overrides = [f"+experiment={arguments.experiment}", "solver=time_stepped", *arguments.overrides]
        config = parse(compose("config", overrides=overrides))
    rows = study(config, arguments.epochs)
    report = {
        "experiment": arguments.experiment, "overrides": arguments.overrides, "seed": config.seed, "samples": SAMPLES,
        "dt": config.solver.dt, **provenance(), "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"alignment_{arguments.experiment}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(rows, arguments.epochs) + "\n")
    print(table(rows, arguments.epochs))


if __name__ == "__main__":
    main()
