"""Schedules over the progress of the run."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from anypo.parts.knobs.base import Moving, register_knob
from anypo.ranges import Count, Finite, NonNegative, Share
from anypo.types import Trajectories


@register_knob
@dataclass
class Linear(Moving):
    """start -> end linearly over the first `until` share of the run, then end."""

    start: Finite[float]
    end: Finite[float]
    until: Share[float] = 1.0
    progress: float = field(default=0.0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        share = min(self.progress / self.until, 1.0) if self.until else 1.0
        return self.start + share * (self.end - self.start)

    def __str__(self) -> str:
        return f"{self.start:g}->{self.end:g}"

    def reach(self) -> tuple[float, ...]:
        last = copy(self)
        last.progress = 1.0
        return float(self), float(last)

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.progress = progress


@register_knob
@dataclass
class Staircase(Moving):
    """start + step * ceil(max(t - after, 0) / per) after t batches, not beyond end."""

    start: Finite[float]
    step: Finite[float]
    end: Finite[float]
    after: NonNegative[int] = 0
    per: Count[int] = 10
    batches: int = field(default=0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        value = self.start + self.step * math.ceil(max(self.batches - self.after, 0) / self.per)
        return min(value, self.end) if self.step > 0 else max(value, self.end)

    def reach(self) -> tuple[float, ...]:
        return self.start, self.end

    def __str__(self) -> str:
        return f"{self.start:g}->{self.end:g}"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.batches += 1


@register_knob
@dataclass
class Reciprocal(Linear):
    """1 over the linear schedule: the inverse of a step size that falls over the run."""

    def __float__(self) -> float:
        return 1 / max(super().__float__(), 1e-3)

    def __str__(self) -> str:
        return f"1/({super().__str__()})"


@register_knob
@dataclass
class Cosine(Linear):
    """start -> end along half a cosine."""

    def __float__(self) -> float:
        share = min(self.progress / self.until, 1.0) if self.until else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * share))


@register_knob
@dataclass
class Clock(Moving):
    """The number of updates made so far."""

    ticks: int = field(default=0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return float(self.ticks)

    def __str__(self) -> str:
        return "clock"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.ticks += 1


@register_knob
@dataclass
class Alternate(Clock):
    """1 at the first of every `period` updates, 0 at the others. As the coefficient of a part it switches it off."""

    period: Count[int] = 2
    switches: ClassVar[bool] = True

    def __float__(self) -> float:
        return float(self.ticks % self.period == 0)

    def __str__(self) -> str:
        return f"every {self.period}"
