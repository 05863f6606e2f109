"""Steps on long, dense streams of events: how much longer recurrent layers and neurons that differ take than the plain layer.

    python benchmarks/sequence.py

700 inputs, 8,000 arrivals in 1,000 ms, 256 neurons, a readout of the maximum over 20 classes; batch 32, float32, forward and
backward. The layers alternate; the table has the median of the turns, and the ratio to the plain layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from eventprop import EventDriven, LeakyReadout, LearnableLIF, Spikes, SpikingLinear, SpikingRecurrent

BATCH, INPUTS, ARRIVALS, NEURONS, CLASSES, T_END = 32, 700, 8000, 256, 20, 1000.0
SOLVER = EventDriven(T_END)


def different() -> LearnableLIF:
    """Neurons all of which have other time constants."""
    neuron = LearnableLIF(NEURONS)
    with torch.no_grad():
        for logarithm in (neuron.log_tau_mem, neuron.log_tau_syn):
            logarithm.add_(0.1 * torch.randn(NEURONS))
    return neuron


LAYERS: dict[str, Callable[[], SpikingLinear]] = {
    "SpikingLinear": lambda: SpikingLinear(INPUTS, NEURONS, solver=SOLVER),
    "SpikingLinear of LearnableLIF": lambda: SpikingLinear(
        INPUTS, NEURONS, solver=SOLVER, neuron=LearnableLIF(NEURONS)
    ),
    "the same, all different": lambda: SpikingLinear(INPUTS, NEURONS, solver=SOLVER, neuron=different()),
    "SpikingRecurrent, delay 1 ms": lambda: SpikingRecurrent(INPUTS, NEURONS, solver=SOLVER, recurrent_std=0.1),
    "the same of LearnableLIF, all different": lambda: SpikingRecurrent(
        INPUTS, NEURONS, solver=SOLVER, recurrent_std=0.1, neuron=different()
    ),
}


def made(kind: str, std: float) -> nn.Sequential:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    torch.manual_seed(1)
    nn.init.normal_(layer.weight, 0.0, std)
    return nn.Sequential(layer, LeakyReadout(NEURONS, CLASSES, solver=SOLVER))


def step(network: nn.Sequential, spikes: Spikes, target: torch.Tensor) -> float:
    """Seconds for a forward and a backward pass."""
    network.zero_grad()
    begin = time.perf_counter()
    F.cross_entropy(network(spikes), target).backward()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per step of layers on long, dense streams of events.")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--std", type=float, default=0.3, help="of the weights: more for more spikes")
    arguments = parser.parse_args()
    torch.manual_seed(2)
    spikes = Spikes(torch.rand(BATCH, ARRIVALS).mul(T_END).sort(1)[0], torch.randint(INPUTS, (BATCH, ARRIVALS)), INPUTS)
    target = torch.arange(BATCH) % CLASSES
    networks = {kind: made(kind, arguments.std) for kind in LAYERS}
    turns: dict[str, list[float]] = {kind: [] for kind in LAYERS}
    for turn in range(arguments.turns + 1):
        for kind, network in networks.items():
            seconds = step(network, spikes, target)
            if turn:  # the first is a warm-up
                turns[kind].append(seconds)
    plain = statistics.median(turns["SpikingLinear"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| layer | spikes per neuron | s per step | ratio |\n|---|---|---|---|")
    for kind, network in networks.items():
        with torch.no_grad():
            count = float(network[0](spikes).count().float().mean())
        median = statistics.median(turns[kind])
        print(f"| {kind} | {count:.1f} | {median:.3f} | {median / plain:.2f} |")


if __name__ == "__main__":
    main()
