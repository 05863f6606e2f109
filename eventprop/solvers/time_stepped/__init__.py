"""The solver on a time grid, and the spike trains that it works with."""

from .grid_spikes import GridSpikes
from .solver import BackwardRule, TimeStepped

__all__ = ["BackwardRule", "GridSpikes", "TimeStepped"]
