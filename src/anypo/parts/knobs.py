"""Knobs: numbers that move. Any float of any part may be one; they move once after each batch, never inside a loss."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from anypo.types import Trajectories

KNOBS: dict[str, type] = {}
"""Knobs by the name they have in a configuration: `{knob: linear, start: 0.2, end: 0.1}`."""
T = TypeVar("T", bound=type)


def register_knob(cls: T) -> T:
    """Class decorator: makes a knob known by its class name in kebab case."""
    KNOBS[re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()] = cls
    return cls


@register_knob
@dataclass
class Linear:
    """start -> end linearly over the first `until` share of the run, then end."""

    start: float
    end: float
    until: float = 1.0
    progress: float = field(default=0.0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        share = min(self.progress / self.until, 1.0) if self.until else 1.0
        return self.start + share * (self.end - self.start)

    def __str__(self) -> str:
        return f"{self.start:g}->{self.end:g}"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        return {"progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = state["progress"]


@register_knob
@dataclass
class Staircase:
    """start + step * ceil(max(t - after, 0) / per) after t batches, not beyond end."""

    start: float
    step: float
    end: float
    after: int = 0
    per: int = 10
    batches: int = field(default=0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        value = self.start + self.step * math.ceil(max(self.batches - self.after, 0) / self.per)
        return min(value, self.end) if self.step > 0 else max(value, self.end)

    def __str__(self) -> str:
        return f"{self.start:g}->{self.end:g}"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


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
class Dual:
    """A multiplier by dual ascent after every update: value <- max(0, value + rate (metric - bound))."""

    start: float
    metric: str
    bound: float
    rate: float = 1.0
    value: float = field(default=0.0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __post_init__(self) -> None:
        self.value = self.start

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"dual({self.metric}<={self.bound:g})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        gap = metrics[self.metric] - self.bound
        if math.isfinite(gap):
            self.value = max(0.0, self.value + self.rate * gap)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@register_knob
@dataclass
class Cosine(Linear):
    """start -> end along half a cosine."""

    def __float__(self) -> float:
        share = min(self.progress / self.until, 1.0) if self.until else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * share))


@register_knob
@dataclass
class Clock:
    """The number of updates made so far."""

    ticks: int = field(default=0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return float(self.ticks)

    def __str__(self) -> str:
        return "clock"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.ticks += 1

    def state_dict(self) -> dict[str, Any]:
        return {"ticks": self.ticks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ticks = state["ticks"]


@register_knob
@dataclass
class Alternate(Clock):
    """1 at the first of every `period` updates, 0 at the others. As the coefficient of a part it lets the part rest."""

    period: int = 2
    rests: ClassVar[bool] = True

    def __float__(self) -> float:
        return float(self.ticks % self.period == 0)

    def __str__(self) -> str:
        return f"every {self.period}"


@register_knob
@dataclass
class Tracked:
    """A moving mean of a metric, value <- (1 - rate) value + rate metric, from its first value on; 1 before that."""

    metric: str
    rate: float = 0.005
    value: float = field(default=math.nan, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return 1.0 if math.isnan(self.value) else self.value

    def __str__(self) -> str:
        return f"mean({self.metric})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if math.isfinite(new := metrics.get(self.metric, math.nan)):
            self.value = new if math.isnan(self.value) else (1 - self.rate) * self.value + self.rate * new

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@register_knob
@dataclass
class Temperature:
    """alpha = exp(x) by Adam on x (rate `lr`) with the gradient -alpha (log pi + target): entropy is held at `target`, minus the
    number of action dimensions unless given. Rests at updates without the metric `logp_policy`.

    Source: SAC, arXiv 1812.05905, eq. 18.
    """

    start: float = 1.0
    lr: float = 3e-4
    target: float | None = None
    state: tuple[float, float, float, int] = field(default=(0.0, 0.0, 0.0, 0), init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __post_init__(self) -> None:
        self.state = (math.log(self.start), 0.0, 0.0, 0)

    def __float__(self) -> float:
        return math.exp(self.state[0])

    def __str__(self) -> str:
        return f"temperature({'-dim' if self.target is None else format(self.target, 'g')})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if not math.isfinite(logp := metrics.get("logp_policy", math.nan)):
            return
        target = -float(b.trace["action"].shape[-1]) if self.target is None else self.target
        x, m, v, n = self.state
        g = -math.exp(x) * (logp + target)
        n, m, v = n + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= self.lr * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.999**n)) + 1e-8)
        self.state = (x, m, v, n)

    def state_dict(self) -> dict[str, Any]:
        return {"state": list(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        x, m, v, n = state["state"]
        self.state = (x, m, v, int(n))
