"""The contenders of ``benchmarks/speed.py``: one adapter per package, and the job that all of them do.

An adapter is a module with

    NOT_EQUAL: one line that says what is not equal about its job; "" if nothing
    PACKAGES: the distributions that it needs, whose versions the report names
    def training_step(job: Job) -> Callable[[int], float]: prepares everything, network and data included, and returns the
        function that trains on batch k (forward, backward, optimizer) and returns the loss. Where that function has an
        attribute ``hidden_spikes``, it is called at the end for the hidden spikes per image
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ADAPTERS = (
    "event_driven", "event_driven_busy", "event_driven_one_thread", "time_stepped", "surrogate", "rate_coded",
    "dense_products", "snntorch", "spikingjelly", "norse", "jaxsnn", "exact_snn_nn", "eventax",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A 784-350-10 network of current-based LIF neurons on latency-coded images, float32.

    Attributes:
        times: [batches, B, 784] ms of the one spike of each pixel, +inf where it is silent; float32.
        labels: [batches, B] int64.
        weights: [inputs, hidden] and [hidden, classes] float32, with which packages that have these neurons begin: those of
            ``mnist_gray`` after its training, so that all are as active as training makes them.
        lr: of Adam; so small that no contender's activity drifts while it is timed.
    """

    times: np.ndarray
    labels: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]
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

    def raster(self, k: int) -> np.ndarray:
        """[T, B, 784] float32: batch k in bins of ``dt``."""
        steps = round(self.t_end / self.dt)
        sample, pixel = np.nonzero(np.isfinite(self.times[k]))
        step = np.minimum((self.times[k][sample, pixel] / self.dt).astype(int), steps - 1)
        raster = np.zeros((steps, *self.times[k].shape), np.float32)
        raster[step, sample, pixel] = 1.0
        return raster
