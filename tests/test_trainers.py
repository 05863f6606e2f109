"""Other people's training loops around networks that take and return spikes: DistributedDataParallel and Lightning."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, StackDataset

from eventprop import EventDriven, GridSpikes, LeakyReadout, Spikes, SpikingLinear, TimeStepped, smooth_count

OPTIONS: dict[str, dict] = {"plain": {}, "static": {"static_graph": True}, "unused": {"find_unused_parameters": True}}
SOLVERS = {"exact": EventDriven(30.0), "grid": TimeStepped(30.0, 1.0)}
STEPS = 2  # with a static graph, the first step goes another way than the others


def _network(solver: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [SpikingLinear(m, n, solver=SOLVERS[solver], dtype=torch.float64) for m, n in ((6, 8), (8, 3))]
    for layer in layers:
        layer.reset_parameters(mean=3.0)
    return nn.Sequential(*layers)


def _gradients(network: nn.Module, rows: slice) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    spikes = Spikes.from_times(20.0 * torch.rand((4, 6), generator=generator, dtype=torch.float64))
    for _ in range(STEPS):
        network.zero_grad()
        smooth_count(network(spikes[rows]), 30.0, tau=5.0).square().mean().backward()
    return [parameter.grad for parameter in network.parameters()]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    found = {
        (solver, name): _gradients(DistributedDataParallel(_network(solver), **options), rows)
        for solver in SOLVERS
        for name, options in OPTIONS.items()
    }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_data_parallel_processes_have_the_gradients_of_one(tmp_path):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for solver in SOLVERS:
        expected = _gradients(_network(solver), slice(4))
        assert all(grad.any() for grad in expected)
        for name in OPTIONS:
            # rounding of sums in another order
            torch.testing.assert_close(one[solver, name], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(two[solver, name], one[solver, name], rtol=0, atol=0)


class _Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        solver = EventDriven(30.0)
        self.network = nn.Sequential(SpikingLinear(6, 8, solver=solver), LeakyReadout(8, 3, solver=solver))
        self.seen: list[Spikes] = []

    def training_step(self, batch: tuple[Spikes, torch.Tensor], _) -> torch.Tensor:
        spikes, target = batch
        self.seen.append(spikes)
        loss = nn.functional.cross_entropy(self.network(spikes), target)
        self.log("loss", loss, on_epoch=True, batch_size=len(spikes))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on the number of workers, and on packages that are not there
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-mixed", torch.float32)]
)
@pytest.mark.parametrize("kind", [Spikes, GridSpikes])
def test_lightning_trains(kind, precision, dtype, tmp_path):
    torch.manual_seed(0)
    spikes = Spikes.from_times(20.0 * torch.rand(4, 6))
    if kind is GridSpikes:
        spikes = GridSpikes.from_spikes(spikes, 1.0, 30.0)
    module, loader = _Classifier(), DataLoader(StackDataset(spikes, torch.tensor([0, 1, 2, 0])), batch_size=2)
    trainer = lightning.Trainer(
        fast_dev_run=2, accelerator="cpu", precision=precision, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=Path(tmp_path),
    )  # fmt: skip
    trainer.fit(module, loader)
    assert [type(batch) for batch in module.seen] == [kind] * 2
    assert {batch.dtype for batch in module.seen} == {dtype}
    assert torch.isfinite(trainer.callback_metrics["loss"])
