"""What reinforcement learning from a learned reward adds: rewards of several models at once, a price per token for leaving the
reference, and whitening that keeps what a reward of zero means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.errors import MissingField
from anypo.parts._register import register
from anypo.parts.knobs import Moving, register_knob
from anypo.parts.statistics import masked_mean, rewarded
from anypo.stages import Number
from anypo.types import Trajectories


@register("score")
@dataclass(frozen=True)
class ConservativeScore:
    """score_i of K reward models' scores R_1..R_K: their `mean`; `wco`, min_k R_k; `uwo`, mean_k R_k - lam Var_k R_k.

    The variance is unbiased, and 0 for one model. A missing score (NaN) enters nothing; where all are missing, so is the result.
    Batches without `scores` keep their outcome. Source: arXiv 2310.02743, sec. 3.
    """

    rule: Literal["mean", "wco", "uwo"] = "uwo"
    lam: Number = 0.1

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


def sampled_kl(b: Trajectories) -> Tensor:
    """log pi_old - log pi_ref on valid decisions (k1, nats), 0 elsewhere."""
    if b.logp_old is None or b.logp_ref is None:
        raise MissingField("logp_old" if b.logp_old is None else "logp_ref")
    return torch.where(b.valid, b.logp_old - b.logp_ref, 0.0).detach()


@register("score")
@dataclass(frozen=True)
class TokenKl:
    """r_t = -coef (log pi_old - log pi_ref), and the outcome beside it on the row's last decision; rewards that are there already
    stay, with the price on top.

    Source: arXiv 2203.02155, eq. 2.
    """

    coef: Number = 0.05
    reads = ("logp_old", "logp_ref")

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        assert b.reward is not None
        return b.but(reward=torch.where(b.valid, b.reward - float(self.coef) * sampled_kl(b), 0.0))


@register_knob
@dataclass
class AdaptiveKl(Moving):
    """A coefficient that holds the divergence at `target`: c <- c (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon) after every
    batch, KL the mean over its n rows of the summed log pi_old - log pi_ref (nats). Source: arXiv 1909.08593, sec. 2.2.
    """

    start: float = 0.05
    target: float = 6.0
    horizon: float = 10_000.0
    value: float = field(default=0.0, init=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __post_init__(self) -> None:
        self.value = self.start

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"adaptive(kl={self.target:g})"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        kl = float(sampled_kl(b).sum(1).mean())
        if math.isfinite(kl):
            self.value *= 1 + min(max(kl / self.target - 1, -0.2), 0.2) * b.shape[0] / self.horizon


@register("credit")
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
        mean = masked_mean(x, b.valid)
        scaled = (x - mean) / (masked_mean((x - mean).square(), b.valid) + 1e-8).sqrt()
        return b.but(**{self.of: torch.where(b.valid, scaled + mean * self.keep_mean, 0.0)})
