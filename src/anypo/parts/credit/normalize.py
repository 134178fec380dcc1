"""Scale, whiten and limit advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from anypo.parts.ops.groups import group_stats
from anypo.parts.ops.masked import masked_mean, whiten
from anypo.parts.ops.outcomes import rewarded, scored
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Positive
from anypo.types import Trajectories


@register_part("credit")
@dataclass(frozen=True)
class BatchScale:
    """A <- A / (std + eps), the standard deviation of the scores over the whole batch, so that groups of like difficulty weigh
    the same. Source: Flow-GRPO, arXiv 2505.05470 (`global_std` of its code).
    """

    eps: Positive[float] = 1e-4
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        score = scored(b).need("score")
        return b.but(advantage=b.need("advantage") / (group_stats(score, None)[2].unsqueeze(1) + self.eps))


@register_part("credit")
@dataclass(frozen=True)
class LimitAdvantage:
    """A <- unit * clip(A, -limit, limit) / limit, with unit = limit where none is given.

    Source: DDPO, arXiv 2305.13301 (its code); unit 1: AWM, arXiv 2509.25050.
    """

    limit: Positive[float] = 5.0
    unit: Positive[float] | None = None
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        unit = self.limit if self.unit is None else self.unit
        return b.but(advantage=b.need("advantage").clamp(-self.limit, self.limit) * (unit / self.limit))


@register_part("credit")
@dataclass(frozen=True)
class Whiten:
    """A <- (A - mean) / (std + 1e-8) over all valid decisions of the collected batch; return targets stay as they are.

    Source: openai/baselines, ppo2, which does so per minibatch and with ddof=0.
    """

    ddof: NonNegative[int] = 1
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        return b.but(advantage=whiten(b.need("advantage"), b.mask, self.ddof))


@register_part("credit")
@dataclass(frozen=True)
class Standardize:
    """x <- (x - mean) / sqrt(var + 1e-8), mean and variance (ddof=0) over all valid decisions; `keep_mean` adds the mean again.

    of: the rewards, before credit is assigned, or the advantage, after it; return targets stay as they are.
    Source: arXiv 2403.17031 (details of the summarize-from-feedback code).
    """

    of: Literal["reward", "advantage"] = "advantage"
    keep_mean: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("advantage",) if self.of == "advantage" else ()

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b) if self.of == "reward" else b
        x = getattr(b, self.of)
        mean = masked_mean(x, b.mask)
        scaled = (x - mean) / (masked_mean((x - mean).square(), b.mask) + 1e-8).sqrt()
        return b.but(**{self.of: torch.where(b.valid, scaled + mean * self.keep_mean, 0.0)})
