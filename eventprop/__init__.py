"""EventProp in PyTorch: spiking neural networks trained with exact gradients."""

from .solvers.compilation import sources as sources  # isort: skip  # first, to know what the other modules were imported from
from .core.learnable import LearnableLIF
from .core.neuron import LIF
from .core.spikes import Spikes
from .encoders import binary_latency_encode, latency_encode, sequence_encode
from .layers.augmentation import BackgroundSpikes, ShiftImage, SpikeDropout, SpikeTimeJitter
from .layers.bias import BiasSpike
from .layers.convolution import AveragePool2d, EarliestSpikePool2d, SpikingConv2d
from .layers.delays import Delay, DelayedSpikingLinear
from .layers.linear import SpikingLinear
from .layers.linear_map import SpikingLayer
from .layers.readout import LeakyReadout
from .layers.recurrent import SpikingRecurrent
from .layers.stream import stream
from .losses import (
    first_spike_cross_entropy,
    silent_margin,
    smooth_count,
    spike_count_cross_entropy,
    spike_count_penalty,
    spike_time_mse,
)
from .solvers.event_driven import EventDriven
from .solvers.time_stepped import GridSpikes, TimeStepped
from .tools.convergence import study_convergence
from .tools.gradcheck import GradientReport, check_gradients
from .tools.report import Report, report
from .tools.traces import adjoint_trace, potential_trace
from .training.process import tune_process

__all__ = [
    "LIF",
    "AveragePool2d",
    "BackgroundSpikes",
    "BiasSpike",
    "Delay",
    "DelayedSpikingLinear",
    "EarliestSpikePool2d",
    "EventDriven",
    "GradientReport",
    "GridSpikes",
    "LeakyReadout",
    "LearnableLIF",
    "Report",
    "ShiftImage",
    "SpikeDropout",
    "SpikeTimeJitter",
    "Spikes",
    "SpikingConv2d",
    "SpikingLayer",
    "SpikingLinear",
    "SpikingRecurrent",
    "TimeStepped",
    "adjoint_trace",
    "binary_latency_encode",
    "check_gradients",
    "first_spike_cross_entropy",
    "latency_encode",
    "potential_trace",
    "report",
    "sequence_encode",
    "silent_margin",
    "smooth_count",
    "spike_count_cross_entropy",
    "spike_count_penalty",
    "spike_time_mse",
    "stream",
    "study_convergence",
    "tune_process",
]
