"""Penalties on the outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import sampled_kl
from anypo.parts.ops.outcomes import rewarded, scored
from anypo.parts.registry import register_part
from anypo.ranges import Count, NonNegative
from anypo.types import Trajectories


@register_part("score")
@dataclass(frozen=True)
class TokenKl:
    """r_t = -coef (log pi_old - log pi_ref), and the outcome beside it on the row's last decision; rewards that are there already
    stay, with the price on top.

    Source: arXiv 2203.02155, eq. 2.
    """

    coef: NonNegative[Number] = 0.05
    reads = ("logp_old", "logp_ref")

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        return b.but(reward=torch.where(b.valid, b.need("reward") - float(self.coef) * sampled_kl(b), 0.0))


@register_part("score")
@dataclass(frozen=True)
class KlPenalty:
    """score_i - beta sum_t (log pi_old - log pi_ref): the divergence from the reference (k1) as a cost of the outcome.

    Source: RLOO, arXiv 2402.14740, sec. 2; beta = 0 reads no reference.
    """

    beta: NonNegative[Number] = 0.05

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp_old", "logp_ref") if float(self.beta) else ()

    def __call__(self, b: Trajectories) -> Trajectories:
        if not float(self.beta):
            return b
        b = scored(b)
        return b.but(score=b.need("score") - float(self.beta) * sampled_kl(b).sum(1))


@register_part("score")
@dataclass(frozen=True)
class OverlongPenalty:
    """Soft punishment of long rows: 0 up to L - margin, then linear to -1 at the budget L, -1 beyond.

    score_i + ((L - margin) - |o_i|) / margin clipped to [-1, 0]; L is the batch's generation budget unless given.
    Source: DAPO, arXiv 2503.14476, eq. 13.
    """

    margin: NonNegative[int] = 4096
    limit: Count[int] | None = None

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        limit = self.limit or b.budget or b.shape[1]
        return b.but(score=score + overlong(b.lengths.to(score.dtype), limit, self.margin))


def overlong(length: torch.Tensor, limit: int, margin: int) -> torch.Tensor:
    """p = ((limit - margin) - length) / margin, clipped to [-1, 0]."""
    return ((limit - margin - length) / margin).clamp(-1.0, 0.0)
