"""What kernels take, under names: numba compiles named tuples as it does their fields."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eventprop.core.neuron import LIF


class Arrivals(NamedTuple):
    """What a batch of layers receives, or one sample of it."""

    time: np.ndarray
    source: np.ndarray


class Constants(NamedTuple):
    """Of one type of neuron; a ``LIF`` as numbers."""

    tau_mem: float
    tau_syn: float
    v_th: float

    @classmethod
    def of(cls, neuron: LIF) -> Constants:
        return cls(*neuron.numbers)
