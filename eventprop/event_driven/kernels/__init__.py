"""The event-driven solver on the CPU, in numba: the same functions as in ``reference``."""

from .adjoint import adjoint
from .forward import forward
from .readout import average, average_adjoint, maximum

__all__ = ["adjoint", "average", "average_adjoint", "forward", "maximum"]
