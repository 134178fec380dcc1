"""Knobs: numbers that move during a run."""

from anypo.parts.knobs.controllers import KlController
from anypo.parts.knobs.duals import Dual, Temperature
from anypo.parts.knobs.schedules import Alternate, Clock, Cosine, Linear, Reciprocal, Staircase
from anypo.parts.knobs.tracked import SuccessRate, Tracked, TrackedQuantile

__all__ = [
    "Alternate",
    "Clock",
    "Cosine",
    "Dual",
    "KlController",
    "Linear",
    "Reciprocal",
    "Staircase",
    "SuccessRate",
    "Temperature",
    "Tracked",
    "TrackedQuantile",
]
