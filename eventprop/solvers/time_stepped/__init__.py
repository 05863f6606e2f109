"""The solver on a time grid, and the spike trains that it works with."""

from .grid import GridSpikes
from .solver import TimeStepped

__all__ = ["GridSpikes", "TimeStepped"]
