"""The exact solver in continuous time."""

from .solver import EventDriven

__all__ = ["EventDriven"]
