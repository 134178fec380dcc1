"""Feedback controllers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from anypo.parts.knobs.base import Moving, read_metric, register_knob
from anypo.parts.ops.outcomes import scored
from anypo.ranges import Finite, NonNegative
from anypo.types import Trajectories


@register_knob
@dataclass(unsafe_hash=True)
class KlController(Moving):
    """Threshold clip((base + u) phase, 0.1, 0.6) of a divergence, and its moving average `average`.

    u is a PID of the error between the reward's velocity and 0.001; the phase factor follows the last rewards: 1.5 in the
    first 50 updates, 1.2 while they climb, 1 when converged, else 0.8. Source: ryyzn9/SAFE, controllers/.
    """

    base: NonNegative[float] = 0.3
    gains: tuple[Finite[float], Finite[float], Finite[float]] = (0.3, 0.01, 0.05)
    average: float = field(default=0.0, init=False, compare=False)
    smooth: float | None = field(default=None, init=False, compare=False)
    integral: float = field(default=0.0, init=False, compare=False)
    error: float = field(default=0.0, init=False, compare=False)
    adjustment: float = field(default=0.0, init=False, compare=False)
    rewards: list[float] = field(default_factory=list, init=False, compare=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return min(max((self.base + self.adjustment) * self.phase(), 0.1), 0.6)

    def __str__(self) -> str:
        return "pid"

    def phase(self) -> float:
        """Return the factor of the present phase."""
        if len(self.rewards) < 50:
            return 1.5
        recent, before = self.rewards[-50:], self.rewards[:-50] if len(self.rewards) >= 100 else self.rewards[-50:]
        mean = sum(recent) / 50
        if mean > sum(before) / len(before) + 0.01:
            return 1.2
        std = math.sqrt(sum((r - mean) ** 2 for r in recent) / 50)
        return 1.0 if std < 0.02 and mean > 0.7 else 0.8

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.average = 0.9 * self.average + 0.1 * read_metric(metrics, "kl_ref")
        reward = float(scored(b).need("score").nanmean())
        if not math.isfinite(reward):  # no row has an outcome
            return
        self.rewards = [*self.rewards, reward][-100:]
        if self.smooth is None:
            self.smooth = reward
            return
        before, self.smooth = self.smooth, 0.95 * self.smooth + 0.05 * reward
        error, (p, i, d) = self.smooth - before - 0.001, self.gains
        self.integral = min(max(self.integral + error, -1.0), 1.0)
        self.adjustment = p * error + i * self.integral + d * (error - self.error)
        self.error = error
