"""This package, ``EventDriven``, in a process that takes subnormal numbers as they are."""

from __future__ import annotations

from .event_driven import PACKAGES, training_step

__all__ = ["NOT_EQUAL", "PACKAGES", "TUNED", "training_step"]

NOT_EQUAL = "without `tune_process`: some of Adam's moments are subnormal"
TUNED = False
