"""The event-driven solver on the CPU, in numba: the same functions as in ``reference``."""

from .adjoint import adjoint
from .common import input_major
from .forward import forward
from .patches import fold, put_back, unfold
from .readout import average, average_adjoint, maximum

__all__ = ["adjoint", "average", "average_adjoint", "fold", "forward", "input_major", "maximum", "put_back", "unfold"]
