"""Clipped surrogates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import importance_ratio, log_ratio
from anypo.parts.ops.surrogate import advantage_at, clipped, share
from anypo.parts.registry import register_part
from anypo.ranges import Bound, NonNegative, Positive, Range
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("trust")
@dataclass(frozen=True)
class StepClip:
    """s = min(r A, clip(r, 1 - eps, 1 + eps) A) with eps = first + (last - first) (exp(c d) - 1) / (exp(c) - 1), d = `denoised` [N, T]
    from 0 at the noisiest step to 1 at the last. Source: DPPO, arXiv 2409.00588 (its code).
    """

    first: NonNegative[Number] = 0.001
    last: NonNegative[Number] = 0.01
    c: NonNegative[float] = 3.0
    level: ClassVar[Level] = "decision"
    reads = ("advantage", "denoised")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        first, last = float(self.first), float(self.last)
        bend = torch.expm1(self.c * b.get("denoised").detach()) / math.expm1(self.c)
        eps, r, a = first + (last - first) * bend, importance_ratio(x), b.need("advantage").detach()
        s, cut = clipped(r, a, 1 - eps, 1 + eps)
        return s, {"clip_fraction": share(cut, b)}


@register_part("trust")
@dataclass(frozen=True)
class Clip:
    """s = min(r A, clip(r, 1 - low, 1 + high) A); with `dual` c, for A < 0 not below c A.

    dF/dlogp = r A, and 0 where A > 0 and r > 1 + high or A < 0 and r < 1 - low.
    Source: PPO, arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5.
    """

    low: Bound[Number] = 0.2
    high: Bound[Number] = 0.2
    dual: Annotated[Number, Range(above=1)] | None = None
    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r, a = importance_ratio(x), advantage_at(x, b)
        s, cut = clipped(r, a, 1 - float(self.low), 1 + float(self.high))
        if self.dual is not None:
            floor = float(self.dual) * a
            cut = cut | ((a < 0) & (s < floor))
            s = torch.where(a < 0, torch.maximum(s, floor), s)
        return s, {"clip_fraction": share(cut, b)}


@register_part("trust")
@dataclass(frozen=True)
class TruncatedWeight:
    """s = sg(clip(r, low, high)) A log pi: the weight is capped, but every decision keeps a gradient.

    Source: CISPO (MiniMax-M1), arXiv 2506.13585, eq. 4; no lower bound and cap 5: ScaleRL, arXiv 2510.13786.
    """

    low: Bound[Number] = 0.0
    high: Bound[Number] = 5.0
    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r = importance_ratio(x.detach())
        weight = r.clamp(float(self.low), float(self.high))
        capped = share(weight != r, b)
        weight = weight if weight.ndim == 2 else weight.unsqueeze(1)
        return weight * b.need("advantage").detach() * b.need("logp"), {"clip_fraction": capped}


@register_part("trust")
@dataclass(frozen=True)
class RecentredClip:
    """s = min(r A, clip(r, c - eps, c + eps) A), c = pi_k / pi_old: clipping around the policy pi_k the update starts from, not
    the one that sampled the row. log pi_k is `logp_start` [N, T]; without it the rows are taken as pi_k's own, c = 1.

    Source: ReMix, arXiv 2507.06892.
    """

    eps: Positive[Number] = 0.2
    level: ClassVar[Level] = "decision"
    reads = ("advantage", "logp_old")
    views: ClassVar[dict[str, View]] = {"logp_start": View("logp")}

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        known, eps = b.get("logp_start") is not None, float(self.eps)
        centre = importance_ratio(log_ratio(b, of="start")).detach() if known else torch.ones_like(x)
        s, cut = clipped(importance_ratio(x), advantage_at(x, b), centre - eps, centre + eps)
        return s, {"clip_fraction": share(cut, b)}


@register_part("trust")
@dataclass(frozen=True)
class TwoBranchClip:
    """s = w min(r A, clip(r) A) + (1 - w) min(q A, clip(q) A), r the token's ratio and q = exp(mean_t x) the row's.

    Each branch is clipped in its own box before they are mixed. w: `half`, or the token's entropy scaled to [0, 1] over the row
    (detached; 1/2 where the row's entropy is constant). Source: DHPO, arXiv 2601.05607, eq. 8 to 11.
    """

    low: Bound[Number] = 0.2
    high: Bound[Number] = 0.2
    row_low: Bound[Number] = 3e-4
    row_high: Bound[Number] = 4e-4
    weight: Literal["half", "entropy", "token", "row"] = "half"
    level: ClassVar[Level] = "row"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("advantage", "entropy") if self.weight == "entropy" else ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r, q = importance_ratio(x), importance_ratio(b.row_mean(x))
        token, cut = clipped(r, advantage_at(x, b), 1 - float(self.low), 1 + float(self.high))
        row, row_cut = clipped(q, advantage_at(q, b), 1 - float(self.row_low), 1 + float(self.row_high))
        w = self.mix(b, x)
        return w * token + (1 - w) * row.unsqueeze(1), {"clip_fraction": share(cut, b), "clip_rows": share(row_cut, b)}

    def mix(self, b: Trajectories, x: Tensor) -> Tensor:
        if self.weight != "entropy":
            return torch.full_like(x, {"half": 0.5, "token": 1.0, "row": 0.0}[self.weight])
        h = b.need("entropy").detach()
        low = torch.where(b.valid, h, torch.inf).amin(1, keepdim=True)
        span = torch.where(b.valid, h, -torch.inf).amax(1, keepdim=True) - low
        return torch.where(span > 0, (h - low) / torch.where(span > 0, span, 1.0), 0.5)
