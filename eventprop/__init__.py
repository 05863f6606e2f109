"""EventProp in PyTorch: spiking neural networks trained with exact gradients."""

from . import sources as sources  # first, to know what the other modules were imported from
from .convolution import AveragePool2d, EarliestSpikePool2d, SpikingConv2d
from .encoders import binary_latency_encode, latency_encode
from .event_driven import EventDriven
from .gradcheck import GradientReport, check_gradients
from .layers import BiasSpike, LeakyReadout, SpikingLayer, SpikingLinear, SpikingRecurrent
from .learnable import LearnableLIF
from .losses import first_spike_cross_entropy
from .neuron import LIF
from .report import Report, report
from .spikes import Spikes
from .time_stepped import GridSpikes, TimeStepped

__all__ = [
    "LIF",
    "AveragePool2d",
    "BiasSpike",
    "EarliestSpikePool2d",
    "EventDriven",
    "GradientReport",
    "GridSpikes",
    "LeakyReadout",
    "LearnableLIF",
    "Report",
    "Spikes",
    "SpikingConv2d",
    "SpikingLayer",
    "SpikingLinear",
    "SpikingRecurrent",
    "TimeStepped",
    "binary_latency_encode",
    "check_gradients",
    "first_spike_cross_entropy",
    "latency_encode",
    "report",
]
