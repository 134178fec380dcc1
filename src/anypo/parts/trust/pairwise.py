"""Objectives on pairs of rows: how much better the chosen one is under the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.groups import group_sum, index_groups
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.pairs import agreement, all_pairs, ranked_pairs, ranks, row_weight
from anypo.parts.ops.surrogate import clipped
from anypo.parts.registry import register_part
from anypo.ranges import Decay, Finite, NonNegative, Positive
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("trust")
@dataclass(frozen=True)
class PairContrast:
    """s = -link(u) for every pair, u = x_w - x_l the gap of its rows' log-ratios (or log-likelihoods):

    logistic: (1 - e) softplus(-z) + e softplus(z), z = beta u - margin, e = smoothing; square: (u - (2p - 1) / (2 tau))^2 with
    p the pair's win rate (1 unless given) and tau = beta; hinge: max(0, margin - beta u).
    Source: DPO, arXiv 2305.18290, eq. 7; IPO, arXiv 2310.12036, eq. 17; SLiC-HF, arXiv 2305.10425; SimPO, arXiv 2405.14734.
    """

    link: Literal["logistic", "square", "hinge"] = "logistic"
    beta: NonNegative[Number] = 0.1
    margin: Finite[Number] = 0.0
    smoothing: Decay[float] = 0.0
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        w, l = ranked_pairs(b)  # noqa: E741
        u, beta, margin = x[w] - x[l], float(self.beta), float(self.margin)
        if self.link == "square":
            p = b.get("win_rate")
            loss = (u - (1.0 if p is None else 2 * p[w] - 1) / (2 * beta)).square()
        elif self.link == "hinge":
            loss = (margin - beta * u).relu()
        else:
            soft = torch.nn.functional.softplus
            z = beta * u - margin
            loss = (1 - self.smoothing) * soft(-z) + self.smoothing * soft(z)
        weight = row_weight(b, x)
        return -loss * weight[w] * weight[l], agreement(u)


@register_part("trust")
@dataclass(frozen=True)
class BiasedContrast:
    """s = -softplus(-alpha (x_w - lam x_l)): with lam < 1 pairs whose total likelihood is low are penalised.

    Source: CPL, arXiv 2310.13639 (with its conservative bias).
    """

    alpha: NonNegative[Number] = 0.1
    lam: NonNegative[Number] = 0.5
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        w, l = ranked_pairs(b)  # noqa: E741
        weight = row_weight(b, x)
        s = -torch.nn.functional.softplus(-float(self.alpha) * (x[w] - float(self.lam) * x[l]))
        return s * weight[w] * weight[l], agreement(x[w] - x[l])


@register_part("trust")
@dataclass(frozen=True)
class OddsContrast:
    """s = coef log sigma(o_w - o_l), o = m - log(1 - e^m) the log-odds of the row's mean log-likelihood m.

    Source: ORPO, arXiv 2403.07691, eq. 7.
    """

    coef: NonNegative[Number] = 0.1
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        w, l = ranked_pairs(b)  # noqa: E741
        m = x.clamp(max=-1e-12)
        odds = m - torch.log(-torch.expm1(m))
        weight = row_weight(b, x)
        s = float(self.coef) * torch.nn.functional.logsigmoid(odds[w] - odds[l])
        return s * weight[w] * weight[l], agreement(x[w] - x[l])


@register_part("trust")
@dataclass(frozen=True)
class RewardContrast:
    """s_g = sum over a group's unordered pairs of (dR - beta/2 dv) dv, over k - 1; dv the gap of log-ratios, dR of rewards.

    Groups of one are left out. Without rewards R = +1/4 for the preferred row and -1/4 for the other.
    Source: CoPG, arXiv 2406.19185.
    """

    beta: NonNegative[Number] = 0.1
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        reward = b.score if b.score is not None else (2 * ranks(b) - 1) / 4
        one, other = all_pairs(b)
        weight, (index, groups) = row_weight(b, x), index_groups(b.need("group"))
        dv, dr = x[one] - x[other], reward[one] - reward[other]
        each = (dr - float(self.beta) / 2 * dv) * dv * weight[one] * weight[other]
        size = group_sum(torch.ones_like(x), index, groups)
        total = group_sum(each, index[one], groups) / (size - 1).clamp(min=1)
        return total[size > 1], agreement(dv * dr.sign())


@register_part("trust")
@dataclass(frozen=True)
class PairwiseClip:
    """s = sum_i min(w_i r_i, w_i clip(r_i, 1 +- eps)) / 2 per unordered pair, w_i = sg[(R_i - R_j) r_j]; or, `joint`,
    min(w d, w clip(d, +-eps)) / 2 with d = log r_1 - log r_2 and w = sg[(R_1 - R_2) r_1 r_2]. Blind to shifts of R per prompt.

    Source: P3O, arXiv 2310.00212.
    """

    eps: Positive[Number] = 0.2
    joint: bool = False
    level: ClassVar[Level] = "batch"
    per_group: ClassVar[bool] = True
    reads = ("score", "group")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        score = b.need("score")
        one, other = all_pairs(b)
        eps, r, weight = float(self.eps), importance_ratio(x), row_weight(b, x)
        gap = score[one] - score[other]
        if self.joint:
            d, w = x[one] - x[other], (gap * r[one] * r[other]).detach()
            s = clipped(d, w, -eps, eps)[0] / 2
        else:
            w, v = (gap * r[other]).detach(), (-gap * r[one]).detach()
            s = (clipped(r[one], w, 1 - eps, 1 + eps)[0] + clipped(r[other], v, 1 - eps, 1 + eps)[0]) / 2
        return s * weight[one] * weight[other], agreement((x[one] - x[other]) * gap.sign())
