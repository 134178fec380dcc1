"""Coefficients that hold a metric at a target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from anypo.parts.knobs.base import Moving, read_metric, register_knob
from anypo.ranges import Finite, NonNegative, Positive
from anypo.types import Trajectories


@register_knob
@dataclass
class Dual(Moving):
    """A multiplier by dual ascent after every update: value <- max(0, value + rate (metric - bound))."""

    start: NonNegative[float]
    metric: str
    bound: Finite[float]
    rate: NonNegative[float] = 1.0
    value: float = field(default=0.0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __post_init__(self) -> None:
        self.value = self.start

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"dual({self.metric}<={self.bound:g})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        gap = read_metric(metrics, self.metric) - self.bound
        if math.isfinite(gap):
            self.value = max(0.0, self.value + self.rate * gap)


@register_knob
@dataclass
class Temperature(Moving):
    """alpha = exp(x) by Adam on x (rate `lr`) with the gradient -alpha (log pi + target): entropy is held at `target`, by default
    at `each` for each dimension of the action. Rests at updates without the metric `logp_policy`.

    Source: SAC, arXiv 1812.05905, eq. 18.
    """

    start: Positive[float] = 1.0
    lr: NonNegative[float] = 3e-4
    target: Finite[float] | None = None
    each: Finite[float] = -1.0
    state: tuple[float, float, float, int] = field(default=(0.0, 0.0, 0.0, 0), init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __post_init__(self) -> None:
        self.state = (math.log(self.start), 0.0, 0.0, 0)

    def __float__(self) -> float:
        return math.exp(self.state[0])

    def __str__(self) -> str:
        each = "-dim" if self.each == -1 else f"{self.each:g} dim"
        return f"temperature({each if self.target is None else format(self.target, 'g')})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if not math.isfinite(logp := metrics.get("logp_policy", math.nan)):
            return
        target = self.each * b.trace["action"].shape[-1] if self.target is None else self.target
        x, m, v, n = self.state
        g = -math.exp(x) * (logp + target)
        n, m, v = n + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= self.lr * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.999**n)) + 1e-8)
        self.state = (x, m, v, n)
