"""Log-ratios corrected for the prefix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.parts.ops.log_ratio import log_ratio
from anypo.parts.registry import register_part
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("ratio")
@dataclass(frozen=True)
class MinPrefix:
    """x_t + min_{j<t} x_j over the row's earlier valid decisions; the minimum over none is 0 (ratio 1).

    The cheapest correction for a shifted prefix: the smallest earlier ratio replaces their product. `include_one`
    takes min(1, .), which never amplifies. Source: MinPRO, arXiv 2601.22718, sec. 3 (as described; no code released).
    """

    include_one: bool = False
    level: ClassVar[Level] = "row"
    reads = ("logp", "logp_old")

    def __call__(self, b: Trajectories) -> Tensor:
        x, valid = log_ratio(b), b.valid
        before = torch.where(valid, x, math.inf).cummin(1).values
        before = torch.cat([torch.full_like(before[:, :1], math.inf), before[:, :-1]], 1)
        before = torch.where(before.isinf(), 0.0, before)
        if self.include_one:
            before = before.clamp(max=0.0)
        return torch.where(valid, x + before, 0.0)
