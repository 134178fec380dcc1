"""Credit by the risk of a bundle of prompts: quantiles of their summed scores instead of the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.groups import bundles, group_stats
from anypo.parts.ops.outcomes import scored, spread
from anypo.parts.registry import register_part
from anypo.ranges import Count, Finite, NonNegative, Share
from anypo.types import Trajectories


@register_part("credit")
@dataclass(frozen=True)
class MixedValueAtRisk:
    """A_i = [(w g_C + g_R) / (w + 1)] / (std_j X_j + 1e-6) / (s_q + 1e-6) for the paper X that row i belongs to, with

        g_R = [(X - q_lo)+ - (X - q_hi)+ + q_lo - q_hi] / (a_hi - a_lo + 1e-6),  g_C = -(q_lo - X)+ / (a_lo + 1e-6).

    X sums one row of each of `bundle` prompts; q_lo, q_hi are its quantiles at the levels a_lo, a_hi: tracked ones, or the
    bundle's own where the knob is NaN (or None). s_q: standard deviation of the row's own prompt, 1 where it is below 1e-3. A <= 0.
    Source: RiskPO, arXiv 2510.00911; RTkenny/RiskPO.
    """

    levels: tuple[Share[float], Share[float]] = (0.2, 0.9)
    low: Finite[Number] | None = None
    high: Finite[Number] | None = None
    averse: NonNegative[float] = 1.5
    bundle: Count[int] = 5
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        (a_lo, a_hi), w = self.levels, self.averse
        count, _, std = group_stats(score, b.group)
        prompt_std = torch.where((std <= 1e-3) | (count < 2), 1.0, std)
        advantage = torch.zeros_like(score)
        for rows in bundles(b, self.bundle):
            x = score[rows].sum(1)
            q_lo, q_hi = (
                x.quantile(level) if knob is None or math.isnan(float(knob)) else x.new_tensor(float(knob))
                for level, knob in zip(self.levels, (self.low, self.high), strict=True)
            )
            middle = ((x - q_lo).relu() - (x - q_hi).relu() + q_lo - q_hi) / (a_hi - a_lo + 1e-6)
            tail = -(q_lo - x).relu() / (a_lo + 1e-6)
            paper = (w * tail + middle) / (w + 1) / (_std(x) + 1e-6)
            advantage[rows] = paper.unsqueeze(1) / (prompt_std[rows] + 1e-6)
        return b.but(advantage=spread(b, advantage))


def _std(x: Float[Tensor, " paper"]) -> Tensor:
    return x.std() if len(x) > 1 else x.new_ones(())
