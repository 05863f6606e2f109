"""The errors of the grid solver against the event-driven one.

    EVENTPROP_DATA=../shared/data python benchmarks/convergence.py

Two random networks (two spikes per input in [0, 20] ms, weights with mean and standard deviation 2 in the units of
``reset_parameters``; cross-entropy on the average or maximum potential or on first spikes), and two that people train:
``mnist_gray`` (784-350-10), and ``yin_yang`` (5-200-3) of 20 epochs, on samples of their training data. In float64; errors are
means over 200 samples. Prints tables and writes results/convergence.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from torch.nn import functional as F
from trained import trained

from eventprop import LeakyReadout, Spikes, SpikingLinear, first_spike_cross_entropy
from eventprop.solvers.solver import Solver
from eventprop.tools.convergence import Convergence, study_convergence
from eventprop.training.task import build_network, encoded

SAMPLES, SEED = 200, 1
DTS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
ERRORS = (
    "counts_changed", "spike_time_error", "loss_error", "loss_error_unchanged", "gradient_error", "gradient_error_unchanged",
)  # fmt: skip
PATH = Path(__file__).parent.parent / "results" / "convergence.json"


def random_network(sizes: list[int], loss: str, solver: Solver) -> torch.nn.Sequential:
    torch.manual_seed(0)
    options: dict[str, Any] = {"solver": solver, "dtype": torch.float64}
    layers: list[torch.nn.Module] = [SpikingLinear(m, n, **options) for m, n in itertools.pairwise(sizes)]
    if loss != "first_spike":
        layers[-1] = LeakyReadout(sizes[-2], sizes[-1], reduce=loss, **options)
    for layer in layers:
        layer.reset_parameters(2.0, 2.0)
    return torch.nn.Sequential(*layers)


def study_random(sizes: list[int], loss: str) -> list[Convergence]:
    torch.manual_seed(SEED)
    arrivals = Spikes.from_times(20 * torch.rand(SAMPLES, sizes[0], 2, dtype=torch.float64))
    target = torch.randint(0, sizes[-1], (SAMPLES,))
    function = first_spike_cross_entropy if loss == "first_spike" else F.cross_entropy
    return study_convergence(
        lambda solver: random_network(sizes, loss, solver), arrivals, target, function, t_end=40.0, dts=DTS
    )


def study_trained(experiment: str, *overrides: str) -> list[Convergence]:
    config, network, dataset, _ = trained(experiment, *overrides)
    config = replace(config, train=replace(config.train, dtype="float64"))
    order = torch.randperm(len(dataset.train.labels), generator=torch.Generator().manual_seed(SEED))
    arrivals, target = next(iter(encoded(config, dataset.train).batches(SAMPLES, order)))

    def build(solver: Solver) -> torch.nn.Sequential:
        built = build_network(replace(config, solver=solver), network[0].in_features, dataset.num_classes)
        built.load_state_dict(network.state_dict())
        return built

    return study_convergence(build, arrivals, target, config.loss, t_end=config.solver.t_end, dts=DTS)


def main() -> None:
    studies: dict[str, Callable[[], list[Convergence]]] = {
        f"{'-'.join(map(str, sizes))}, {loss}": lambda sizes=sizes, loss=loss: study_random(sizes, loss)
        for sizes, loss in itertools.product(([4, 5, 3], [10, 10, 3]), ("mean", "max", "first_spike"))
    }
    studies["mnist_gray"] = lambda: study_trained("mnist_gray")
    studies["yin_yang"] = lambda: study_trained("yin_yang", "train.epochs=20")
    report: dict[str, Any] = {**provenance(), "seed": SEED, "samples": SAMPLES, "dt": DTS, "networks": {}}
    for name, study in studies.items():
        print(
            f"\n{name}\n\n| scheme | | " + " | ".join(f"{dt:g} ms" for dt in DTS) + " |\n|---|---|" + "---|" * len(DTS)
        )
        report["networks"][name] = {}
        for result in study():
            columns = {error: getattr(result, error).tolist() for error in ERRORS}
            # JSON has no NaN: the error over no sample
            report["networks"][name][result.scheme] = {
                e: [x if x == x else None for x in c] for e, c in columns.items()
            }
            for error, column in columns.items():
                print(f"| {result.scheme} | {error} | " + " | ".join(f"{x:.1e}" for x in column) + " |", flush=True)
    PATH.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
