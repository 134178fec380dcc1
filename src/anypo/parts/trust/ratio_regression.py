"""The ratio is regressed onto a bounded target instead of being clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.groups import group_median, group_stats
from anypo.parts.ops.surrogate import share
from anypo.parts.registry import register_part
from anypo.ranges import Bound, Positive
from anypo.stages import Level
from anypo.types import Trajectories


def ratio_regression(x: Tensor, target: Tensor, size: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """s = -|r - target| size with log r limited to +-20; inside the box this is PPO's slope, outside it pulls back."""
    gap = x.clamp(-20.0, 20.0).exp() - target
    return -gap.abs() * size, {"above_target": share(gap > 0, b)}


@register_part("trust")
@dataclass(frozen=True)
class BoundedTarget:
    """s = -|r - rho| |A|,  rho = 1 - low + (low + high) sigmoid(z),  z = (score - group median) / (group std + 1e-6) / temp.

    A group of one has median 0 and standard deviation 1. Source: BRRL, arXiv 2604.18578 (GBPO).
    """

    low: Bound[Number] = 0.2
    high: Bound[Number] = 0.2
    temp: Positive[Number] = 1.0
    level: ClassVar[Level] = "group"
    reads = ("advantage", "score", "group")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        score, group = b.need("score"), b.need("group")
        count, _, std = group_stats(score, group)
        middle = torch.where(count > 1, group_median(score, group), 0.0)
        z = (score - middle) / (torch.where(count > 1, std, 1.0) + 1e-6) / float(self.temp)
        low, high = float(self.low), float(self.high)
        target = 1 - low + (low + high) * z.nan_to_num().sigmoid()
        return ratio_regression(x, target.detach().unsqueeze(1), b.need("advantage").detach().abs(), b)


@register_part("trust")
@dataclass(frozen=True)
class MedianTarget:
    """s = -|r - rho| |A|,  rho = 1 - low + (low + high) sigmoid((R - u) / temp),  A = R - V at the present value.

    R: lambda-return; u: the `median` head. The solution of max E[r A] with 1 - low <= r <= 1 + high lies at a bound, on the
    side of the median that R is on. Source: BRRL, arXiv 2604.18578 (BPO).
    """

    low: Bound[Number] = 0.3
    high: Bound[Number] = 0.3
    temp: Positive[Number] = 1e-3
    level: ClassVar[Level] = "decision"
    reads = ("value", "returns", "median")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        returns = b.need("returns")
        low, high = float(self.low), float(self.high)
        side = ((returns - b.get("median").detach()) / float(self.temp)).sigmoid()
        target = 1 - low + (low + high) * side
        return ratio_regression(x, target.detach(), (returns - b.need("value")).detach().abs(), b)
