"""Advantages from a pessimistic ensemble of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.outcomes import scored, spread
from anypo.parts.ops.targets import soft_min
from anypo.parts.registry import register_part
from anypo.ranges import Share
from anypo.types import Trajectories
from anypo.views import View


@register_part("credit")
@dataclass(frozen=True)
class PessimisticBaseline:
    """A_i = R_i - mean_t V, whitened over the rows; returns: R_i on every decision; V_old = V.
    Source: SAFE, ryyzn9/SAFE, trainers/safe.py (there V is read once per row, after its last token).
    """

    alpha: Share[float] = 0.3
    views: ClassVar[dict[str, View]] = {"value_b": View("value_b")}
    reads = ("value",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        value = soft_min(b, self.alpha).detach()
        a = score - b.row_mean(value)
        known = ~a.isnan()
        mean = masked_mean(a, known)
        std = (torch.where(known, a - mean, 0.0).square().sum() / (known.sum() - 1).clamp(min=1)).sqrt()
        a = torch.where(known, (a - mean) / (std + 1e-8), 0.0)
        target = spread(b, score.nan_to_num())
        return b.but(advantage=spread(b, a), returns=target, value_old=torch.where(b.valid, value, 0.0))
