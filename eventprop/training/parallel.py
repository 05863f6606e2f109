"""Several processes that share every batch, as torchrun starts them: ``torchrun --nproc-per-node=2 -m eventprop.train ...``.

Each process works on its part of a batch; gradients, and what an epoch measures, are added up. So a run is the same as that of
one process with the same batch size, but for the order of sums, and for dropout and augmentation: each process draws its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .config import ConfigError
from .metrics import Progress
from .stop import StopRequest


class Processes:
    """This process, and how many there are. The first one alone writes files.

    Attributes:
        stop: whether this process has been asked to stop.
        stopping: whether any had been, when the gradients were last added up; for one process, whether it has been now.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.stop = StopRequest()
        self._any_stop = False
        if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
            self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        return self._any_stop if self.size > 1 else self.stop.signal is not None

    def check(self, network: nn.Module) -> None:
        """Raise for a network that several processes would not train as one does."""
        if self.size > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            raise ConfigError(
                "a network with batch normalisation, which needs whole batches, must be trained by one process"
            )

    def part(self, samples: Tensor) -> Tensor:
        """The part of the samples of a batch, or of their numbers, that is this process's."""
        return samples.tensor_split(self.size)[self.rank]

    def from_first(self, value: Any) -> Any:
        """The ``value`` that the first process has."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process."""
        return bool(self._sum(torch.tensor([int(flag)]))) if self.size > 1 else flag

    def add_gradients(self, network: nn.Module, samples: int) -> None:
        """Make the gradients of means over ``samples`` samples those of the mean over all processes' samples."""
        if self.size == 1:
            return
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1).cpu() for gradient in gradients])
        total = self._sum(torch.cat([flat * samples, flat.new_tensor([samples, self.stop.signal is not None])]))
        self._any_stop = bool(total[-1] > 0)
        for p, mean in zip(parameters, (total[:-2] / total[-2]).split([p.numel() for p in parameters]), strict=True):
            p.grad = torch.empty_like(p).copy_(mean.reshape(p.shape))  # fused optimizers need the strides of p

    def resume(self, progress: Progress, network: nn.Sequential) -> Progress:
        """What a process goes on from: the first has measured all that was, the others nothing yet."""
        if self.is_first:
            return progress
        mine = Progress(network)
        mine.step = progress.step
        torch.manual_seed(torch.initial_seed() + self.rank)
        return mine

    def add_progress(self, progress: Progress) -> None:
        """Make what was measured that of all processes."""
        if self.size == 1:
            return
        score, activity = progress.score, progress.activity
        activity.count()
        score.samples, activity.samples = self._sum(torch.tensor([score.samples, activity.samples])).tolist()
        score.loss, score.correct, activity.grazing = map(self._sum, (score.loss, score.correct, activity.grazing))
        activity.counts = [
            self._sum(count if len(count) == layer_size else count.new_zeros(layer_size))
            for count, layer_size in zip(activity.counts, self._sizes(activity.counts), strict=True)
        ]

    def _sizes(self, counts: list[Tensor]) -> list[int]:
        """The largest size of each tensor in any process: one that has seen no sample does not know how many neurons it has."""
        sizes = torch.tensor([len(count) for count in counts])
        distributed.all_reduce(sizes, distributed.ReduceOp.MAX)
        return sizes.tolist()

    def _sum(self, tensor: Tensor) -> Tensor:
        total = tensor.cpu().clone()
        distributed.all_reduce(total)
        return total


def is_follower() -> bool:
    """Whether torchrun has started this process, and others before it."""
    return int(os.environ.get("RANK", 0)) > 0 and "TORCHELASTIC_RUN_ID" in os.environ


def wait_for_the_first() -> None:
    """Wait, in a process that is not the first, before an error is reported. Most often the first process has met the same
    error, or has ended and so broken the connection: it reports, and torchrun ends this process while it waits. If this
    process outlives the wait, the error is its own to report."""
    if is_follower():
        time.sleep(10.0)


def silence_followers() -> None:
    """Let Hydra make the run directory in the first process alone. Called before Hydra reads the command line."""
    if is_follower():
        unused = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, unused, ignore_errors=True)
        sys.argv += [f"hydra.run.dir={unused}", "hydra/job_logging=disabled"]
