"""Credit for several reward channels: each is normalized before they are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.ops.channels import channels, z_score
from anypo.parts.ops.groups import group_stats, index_groups
from anypo.parts.ops.masked import whiten
from anypo.parts.ops.outcomes import spread
from anypo.parts.registry import register_part
from anypo.ranges import Finite, Positive
from anypo.types import Trajectories

CAP = 1e6
"""Largest factor of the Beta normaliser, reached only where p is 0 or 1 and the deviation 0."""


@register_part("credit")
@dataclass(frozen=True)
class DecoupledBaseline:
    """A = batch z-score of sum_k w_k Z_k, Z_k the group z-score of channel k; for a single channel A = Z_1.

    A channel that does not apply (NaN) counts as 0; a row without any outcome stays out.
    over: the batch statistics run over `rollouts`, or over `tokens`, where
    long rows weigh more. Source: GDPO, arXiv 2601.05242; NVlabs/GDPO.
    """

    weights: tuple[Finite[float], ...] | None = None
    eps: Positive[float] = 1e-4
    over: Literal["rollouts", "tokens"] = "rollouts"
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        raw = channels(b)
        if self.weights is not None and len(self.weights) != raw.shape[1]:
            raise UsageError(f"there are {raw.shape[1]} reward channels and {len(self.weights)} weights for them")
        known = ~raw.isnan().all(1)
        raw = torch.where(known.unsqueeze(1), raw.nan_to_num(), torch.nan)
        b = b.but(mask=b.valid & known.unsqueeze(1))
        z = torch.stack([z_score(x, b.group, self.eps) for x in raw.unbind(1)], 1)
        total = (z * z.new_tensor(self.weights or [1.0] * z.shape[1])).sum(1)
        if z.shape[1] > 1 and self.over == "rollouts":
            total = z_score(torch.where(known, total, torch.nan), None, self.eps)
        advantage = spread(b, total)
        if z.shape[1] > 1 and self.over == "tokens":
            advantage = whiten(advantage, b.mask)
        return b.but(advantage=advantage, score=raw.sum(1) if b.score is None else b.score)


@register_part("credit")
@dataclass(frozen=True)
class BetaNormalize:
    """A = (R - p) min(1 / Beta(p; alpha, beta), 1e6) with p the group's mean reward in [0, 1]; the mean over channels of it.

    The Beta distribution of success rates, fitted to the batch's groups by moments as Beta(a, b), gives the normaliser of least
    variance: alpha = max(1 + a/3, 1), beta = max(1 + b/3, 1). Source: BNPO, arXiv 2506.02864.
    """

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        raw = channels(b)
        known = ~raw.isnan()
        group = b.need("group")
        each = torch.stack([self.normalized(x, group) for x in raw.unbind(1)], 1)
        advantage = torch.where(known, each, 0.0).mean(1)
        score = torch.where(known.any(1), torch.where(known, raw, 0.0).sum(1), torch.nan)
        mask = b.valid & known.any(1, keepdim=True)
        return b.but(advantage=spread(b, advantage), score=score if b.score is None else b.score, mask=mask)

    def normalized(self, reward: Float[Tensor, " row"], group: Tensor) -> Float[Tensor, " row"]:
        count, p, std = group_stats(reward, group)
        index, groups = index_groups(group)
        first = torch.full((groups,), len(index), device=index.device)
        first = first.scatter_reduce_(0, index, torch.arange(len(index), device=index.device), "amin")
        rates = p[first][count[first] >= 2]
        alpha = beta = p.new_ones(())
        if len(rates) >= 2 and (v := rates.var()) > 1e-12:
            mu = rates.mean()
            c = mu * (1 - mu) / v - 1
            alpha, beta = (1 + c * mu / 3).clamp(min=1.0), (1 + c * (1 - mu) / 3).clamp(min=1.0)
        p01 = p.clamp(0.0, 1.0)
        area = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
        log_pdf = torch.special.xlogy(alpha - 1, p01) + torch.special.xlogy(beta - 1, 1 - p01) - area
        return torch.where((count >= 2) & (std > 0), (reward - p) * (-log_pdf).exp().clamp(max=CAP), 0.0)
