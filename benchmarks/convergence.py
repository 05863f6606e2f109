"""The errors of the grid solver against the event-driven one, as a table.

    python benchmarks/convergence.py

Two spikes per input in [0, 20] ms, weights with mean and standard deviation 2 (in the units of ``reset_parameters``), cross-
entropy on the average or maximum potential or on first spikes, 200 samples. Errors are means over samples.
"""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

from eventprop import LeakyReadout, Spikes, SpikingLinear, first_spike_cross_entropy
from eventprop.convergence import study_convergence

SAMPLES = 200


def network(sizes: list[int], loss: str, solver) -> torch.nn.Sequential:
    torch.manual_seed(0)
    options = {"solver": solver, "dtype": torch.float64}
    layers = [SpikingLinear(m, n, **options) for m, n in itertools.pairwise(sizes)]
    if loss != "first_spike":
        layers[-1] = LeakyReadout(sizes[-2], sizes[-1], reduce=loss, **options)
    for layer in layers:
        layer.reset_parameters(2.0, 2.0)
    return torch.nn.Sequential(*layers)


def study(sizes: list[int], loss: str) -> None:
    torch.manual_seed(1)
    arrivals = Spikes.from_times(20 * torch.rand(SAMPLES, sizes[0], 2, dtype=torch.float64))
    target = torch.randint(0, sizes[-1], (SAMPLES,))
    function = first_spike_cross_entropy if loss == "first_spike" else F.cross_entropy
    results = study_convergence(lambda solver: network(sizes, loss, solver), arrivals, target, function, t_end=40.0)
    print(f"\n{'-'.join(map(str, sizes))}, {loss}\n")
    print("| scheme | error | order | " + " | ".join(f"{dt:g} ms" for dt in results[0].dt) + " |")
    print("|---|---|---|" + "---|" * len(results[0].dt))
    for result in results:
        for name in ("spike_time_error", "loss_error", "gradient_error", "counts_changed"):
            errors = getattr(result, name)
            order = f"{result.order(errors):.2f}" if name != "counts_changed" else ""
            print(f"| {result.scheme} | {name} | {order} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


if __name__ == "__main__":
    for sizes, loss in itertools.product(([4, 5, 3], [10, 10, 3]), ("mean", "max", "first_spike")):
        study(sizes, loss)
