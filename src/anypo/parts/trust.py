"""Trust: how far a decision's log-ratio may carry its advantage. The surrogate is maximised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.statistics import ratio
from anypo.stages import Level, Number, View
from anypo.types import Trajectories, whole


def advantage_at(x: Tensor, b: Trajectories) -> Tensor:
    """The advantage at the level of x: as it is per decision, its mean over the row where x has one number per row."""
    assert b.advantage is not None
    a = b.advantage.detach()
    return a if x.ndim == 2 else b.row_mean(a)


@register("trust")
@dataclass(frozen=True)
class Likelihood:
    """s = A log pi: the score-function estimator, no ratio. Source: REINFORCE, Williams 1992, eq. 4."""

    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")
    uses_ratio = False

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None and b.advantage is not None
        return b.advantage.detach() * b.logp, {}


@register("trust")
@dataclass(frozen=True)
class Unclipped:
    """s = r A: the importance-weighted advantage. dF/dlogp = r A."""

    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return ratio(x) * advantage_at(x, b), {}


@register("trust")
@dataclass(frozen=True)
class Clip:
    """s = min(r A, clip(r, 1 - low, 1 + high) A); with `dual` c, for A < 0 not below c A.

    dF/dlogp = r A, and 0 where A > 0 and r > 1 + high or A < 0 and r < 1 - low.
    Source: PPO, arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5.
    """

    low: Number = 0.2
    high: Number = 0.2
    dual: Number | None = None
    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r, a = ratio(x), advantage_at(x, b)
        free, clipped = r * a, r.clamp(1 - float(self.low), 1 + float(self.high)) * a
        s = torch.minimum(free, clipped)
        cut = clipped < free
        if self.dual is not None:
            floor = float(self.dual) * a
            cut = cut | ((a < 0) & (s < floor))
            s = torch.where(a < 0, torch.maximum(s, floor), s)
        return s, {"clip_fraction": share(cut, b)}


@register("trust")
@dataclass(frozen=True)
class TruncatedWeight:
    """s = sg(clip(r, low, high)) A log pi: the weight is capped, but every decision keeps a gradient.

    Source: CISPO (MiniMax-M1), arXiv 2506.13585, eq. 4; no lower bound and cap 5: ScaleRL, arXiv 2510.13786.
    """

    low: Number = 0.0
    high: Number = 5.0
    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None and b.advantage is not None
        r = ratio(x.detach())
        weight = r.clamp(float(self.low), float(self.high))
        capped = share(weight != r, b)
        weight = weight if weight.ndim == 2 else weight.unsqueeze(1)
        return weight * b.advantage.detach() * b.logp, {"clip_fraction": capped}


@register("trust")
@dataclass(frozen=True)
class RecentredClip:
    """s = min(r A, clip(r, c - eps, c + eps) A), c = pi_k / pi_old: clipping around the policy pi_k the update starts from, whoever
    sampled the row. log pi_k is `logp_start` [N, T]; without it the rows are taken as pi_k's own, c = 1.

    Source: ReMix, arXiv 2507.06892.
    """

    eps: Number = 0.2
    level: ClassVar[Level] = "decision"
    reads = ("advantage", "logp_old")
    views: ClassVar[dict[str, View]] = {"logp_start": View("logp")}

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        start = b.get("logp_start")
        assert b.logp_old is not None
        centre = torch.ones_like(x) if start is None else ratio(start - b.logp_old).detach()
        r, a = ratio(x), advantage_at(x, b)
        clipped = r.clamp(centre - float(self.eps), centre + float(self.eps)) * a
        return torch.minimum(r * a, clipped), {"clip_fraction": share(clipped < r * a, b)}


def share(flag: Tensor, b: Trajectories) -> Tensor:
    """Share of decisions (or rows) for which a flag holds."""
    flag = flag.detach().to(torch.float32)
    return (
        flag.mean()
        if flag.ndim == 1 or (whole(b.valid) and flag.shape == b.valid.shape)
        else (flag * b.valid).sum() / b.valid.sum().clamp(min=1)
    )
