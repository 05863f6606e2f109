"""The contenders of ``benchmarks/speed.py`` and ``sequence.py``: one adapter per package, and the jobs that all of them do.

An adapter is a module with

    NOT_EQUAL: one line that says what is not equal about its job; "" if nothing
    PACKAGES: the distributions that it needs, whose versions the report names
    TUNED: False for one that runs without ``eventprop.tune_process``
    def training_step(job: Job[, variant: str]) -> Callable[[int], float]: prepares everything, network and data included, and
        returns the function that trains on batch k (forward, backward, optimizer) and returns the loss. Where that function has
        an attribute ``hidden_spikes``, it is called at the end for the hidden spikes per image; where it has ``steps``, it
        makes that many steps at once
    def sequence_step(job: SequenceJob, variant: str) -> Callable[[int], float]: the same (forward and backward, no optimizer)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

ADAPTERS = (
    "event_driven", "event_driven_untuned", "event_driven_busy", "event_driven_one_thread", "time_stepped", "surrogate",
    "rate_coded", "dense_products", "snntorch", "spikingjelly", "norse", "jaxsnn", "exact_snn_nn", "eventax",
)  # fmt: skip
SEQUENCES = (
    "layers:SpikingLinear", "layers:LearnableLIF", "layers:all different", "layers:SpikingRecurrent",
    "layers:SpikingRecurrent, all different", "layers:DelayedSpikingLinear", "layers:TimeStepped",
    "layers:TimeStepped, recurrent", "snntorch:plain", "snntorch:recurrent", "norse:plain", "norse:recurrent",
    "spikingjelly:plain", "spikingjelly:recurrent",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A 784-350-10 network of current-based LIF neurons on latency-coded images, float32.

    Attributes:
        times: [batches, B, 784] ms of the one spike of each pixel, +inf where it is silent; float32.
        labels: [batches, B] int64.
        weights: [inputs, hidden] and [hidden, classes] float32, with which packages that have these neurons begin: those of
            ``mnist_gray`` after its training, so that all are as active as training makes them.
        moments: of each weight, the two that Adam has after that training, [hidden, inputs] and so on.
        lr: of Adam; so small that no contender's activity drifts while it is timed.
    """

    times: np.ndarray
    labels: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]
    moments: tuple[tuple[np.ndarray, np.ndarray], ...]
    hidden: int = 350
    classes: int = 10
    t_end: float = 40.0  # ms
    dt: float = 1.0  # ms, of those that step through time
    tau_mem: float = 20.0  # ms
    tau_syn: float = 5.0  # ms
    v_th: float = 1.0
    lr: float = 1e-9
    seed: int = 0

    @property
    def inputs(self) -> int:
        return self.times.shape[2]

    def step_of(self, adapter: ModuleType, variant: str) -> Callable[[int], float]:
        return adapter.training_step(self, variant) if variant else adapter.training_step(self)

    def raster(self, k: int) -> np.ndarray:
        """[T, B, 784] float32: batch k in bins of ``dt``."""
        steps = round(self.t_end / self.dt)
        sample, pixel = np.nonzero(np.isfinite(self.times[k]))
        step = np.minimum((self.times[k][sample, pixel] / self.dt).astype(int), steps - 1)
        raster = np.zeros((steps, *self.times[k].shape), np.float32)
        raster[step, sample, pixel] = 1.0
        return raster


@dataclass(frozen=True)
class SequenceJob:
    """Long, dense streams of events to a layer of current-based LIF neurons, and the maximum potential of a readout.

    Attributes:
        time, index: [B, K] ms, ascending, float32; and the input of each arrival, int64.
        labels: [1, B] int64: there is one batch.
        weights: [inputs, neurons], [neurons, neurons] of those that receive their own spikes 1 ms later, and [neurons,
            classes]; float32.
    """

    time: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    weights: tuple[np.ndarray, np.ndarray, np.ndarray]
    t_end: float  # ms
    dt: float = 1.0  # ms, of those that step through time, and the delay of recurrent synapses
    tau_mem: float = 20.0  # ms
    tau_syn: float = 5.0  # ms
    v_th: float = 1.0

    def step_of(self, adapter: ModuleType, variant: str) -> Callable[[int], float]:
        return adapter.sequence_step(self, variant)

    def raster(self) -> np.ndarray:
        """[T, B, inputs] float32: arrivals in bins of ``dt``."""
        steps = round(self.t_end / self.dt)
        raster = np.zeros((steps, len(self.time), len(self.weights[0])), np.float32)
        step = np.minimum((self.time / self.dt).astype(int), steps - 1)
        np.add.at(raster, (step, np.arange(len(step))[:, None], self.index), 1.0)
        return raster


Work = Job | SequenceJob
