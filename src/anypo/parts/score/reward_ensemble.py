"""Scores of several reward models as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.types import Trajectories


@register_part("score")
@dataclass(frozen=True)
class ConservativeScore:
    """score_i of K reward models' scores R_1..R_K: their `mean`; `wco`, min_k R_k; `uwo`, mean_k R_k - lam Var_k R_k.

    The variance is unbiased, and 0 for one model. A missing score (NaN) enters nothing; where all are missing, so is the result.
    Batches without `scores` keep their outcome. Source: arXiv 2310.02743, sec. 3.
    """

    rule: Literal["mean", "wco", "uwo"] = "uwo"
    lam: NonNegative[Number] = 0.1

    def __call__(self, b: Trajectories) -> Trajectories:
        if b.scores is None:
            return b
        known = ~b.scores.isnan()
        count = known.sum(1)
        mean = torch.where(known, b.scores, 0.0).sum(1) / count.clamp(min=1)
        if self.rule == "wco":
            score = torch.where(known, b.scores, torch.inf).amin(1)
        else:
            off = torch.where(known, b.scores - mean.unsqueeze(1), 0.0).square().sum(1)
            score = mean - (float(self.lam) * off / (count - 1).clamp(min=1) if self.rule == "uwo" else 0.0)
        return b.but(score=torch.where(count > 0, score, torch.nan))
