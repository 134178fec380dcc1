"""Reduce: surrogate -> scalar; a linear average."""

from anypo.parts.reduce.means import GroupMean, Mean
from anypo.parts.reduce.weighted import Decoupled, ScaledMean, StepWidthMean

__all__ = ["Decoupled", "GroupMean", "Mean", "ScaledMean", "StepWidthMean"]
