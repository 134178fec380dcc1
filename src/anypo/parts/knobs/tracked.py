"""Numbers tracked over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from anypo.parts.knobs.base import Moving, register_knob
from anypo.parts.ops.groups import bundles
from anypo.parts.ops.outcomes import scored
from anypo.ranges import Count, NonNegative, Share
from anypo.types import Trajectories


@register_knob
@dataclass(unsafe_hash=True)
class SuccessRate(Moving):
    """Share of right rows (score > 0.5) of every start when it was last sampled; as a number, their mean."""

    rates: dict[int, float] = field(default_factory=dict, init=False, compare=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        return sum(self.rates.values()) / max(len(self.rates), 1)

    def __str__(self) -> str:
        return "success-rate"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if b.start is None:
            return
        seen: dict[int, list[bool]] = {}
        outcome = scored(b).need("score")
        for start, score in zip(b.start.tolist(), outcome.tolist(), strict=True):
            if score == score:
                seen.setdefault(start, []).append(score > 0.5)
        self.rates |= {start: sum(right) / len(right) for start, right in seen.items()}


@register_knob
@dataclass
class TrackedQuantile(Moving):
    """The `level` quantile of the bundles' scores, followed over the run: that of the first batch, then
    q <- q + rate (level - mean_j 1[X_j < q]). NaN before the first batch."""

    level: Share[float]
    rate: NonNegative[float] = 0.1
    bundle: Count[int] = 5
    value: float = field(default=math.nan, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"q{self.level:g}"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        b = scored(b)
        sums = [b.need("score")[rows].sum(1) for rows in bundles(b, self.bundle)]
        if not sums:
            return
        x = torch.cat(sums).double()
        if math.isnan(self.value):
            self.value = float(x.quantile(self.level))
        else:
            self.value += self.rate * (self.level - float((x < self.value).double().mean()))


@register_knob
@dataclass
class Tracked(Moving):
    """The last finite value of a metric; NaN before the first."""

    metric: str
    value: float = field(default=math.nan, init=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"last({self.metric})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if math.isfinite(new := metrics.get(self.metric, math.nan)):
            self.value = new
