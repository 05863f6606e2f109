"""The time-stepped solver on the CPU, in numba: the same functions as in ``reference``."""

from .plain import adjoint, drive_adjoint, drive_of, effects, effects_adjoint, forward

__all__ = ["adjoint", "drive_adjoint", "drive_of", "effects", "effects_adjoint", "forward"]
