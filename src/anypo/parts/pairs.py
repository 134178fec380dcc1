"""Objectives on pairs of answers: which of two rows of a group is better, and by how much the policy already agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import MissingField
from anypo.parts._register import register
from anypo.parts.contrast import row_weight
from anypo.parts.ratio import last_value, row_mean
from anypo.parts.statistics import group_sum, index_groups, ratio, scored
from anypo.stages import Level, Number, Reduce, View
from anypo.types import Trajectories


def ranks(b: Trajectories) -> Float[Tensor, " row"]:
    """What orders the rows of a group: the mark of preference data, else the score."""
    found = b.get("preferred")
    found = b.score if found is None else found
    if found is None:
        raise MissingField("score")
    return found


def ranked_pairs(b: Trajectories) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """(better, worse): rows of every pair of a group that differ in rank; rows without decisions are in none."""
    rank, there = ranks(b), b.lengths > 0
    return _pairs(b, there[:, None] & there & (rank[:, None] > rank))


def all_pairs(b: Trajectories) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Every unordered pair of rows of a group that have an outcome, the earlier row first."""
    place = torch.arange(b.shape[0], device=b.valid.device)
    known = torch.ones_like(place, dtype=torch.bool) if b.score is None else ~b.score.isnan()
    return _pairs(b, (place[:, None] < place) & known[:, None] & known)


def _pairs(b: Trajectories, allowed: Tensor) -> tuple[Tensor, Tensor]:
    if b.group is None:
        raise MissingField("group")
    one, other = ((b.group[:, None] == b.group) & allowed).nonzero().unbind(1)
    return one, other


def agreement(gap: Float[Tensor, " pair"]) -> dict[str, Tensor]:
    """Share of pairs that the policy ranks as preferred, and the mean margin (nats)."""
    count = max(len(gap), 1)
    return {"ranking_accuracy": (gap.detach() > 0).to(gap.dtype).sum() / count, "margin": gap.detach().sum() / count}


@register("trust")
@dataclass(frozen=True)
class PairContrast:
    """s = -link(u) for every pair, u = x_w - x_l the gap of its rows' log-ratios (or log-likelihoods):

    logistic: (1 - e) softplus(-z) + e softplus(z), z = beta u - margin, e = smoothing; square: (u - (2p - 1) / (2 tau))^2 with
    p the pair's win rate (1 unless given) and tau = beta; hinge: max(0, margin - beta u).
    Source: DPO, arXiv 2305.18290, eq. 7; IPO, arXiv 2310.12036, eq. 17; SLiC-HF, arXiv 2305.10425; SimPO, arXiv 2405.14734.
    """

    link: Literal["logistic", "square", "hinge"] = "logistic"
    beta: Number = 0.1
    margin: Number = 0.0
    smoothing: float = 0.0
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


@register("trust")
@dataclass(frozen=True)
class BiasedContrast:
    """s = -softplus(-alpha (x_w - lam x_l)): with lam < 1 pairs whose total likelihood is low are penalised.

    Source: CPL, arXiv 2310.13639 (with its conservative bias).
    """

    alpha: Number = 0.1
    lam: Number = 0.5
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        w, l = ranked_pairs(b)  # noqa: E741
        weight = row_weight(b, x)
        s = -torch.nn.functional.softplus(-float(self.alpha) * (x[w] - float(self.lam) * x[l]))
        return s * weight[w] * weight[l], agreement(x[w] - x[l])


@register("trust")
@dataclass(frozen=True)
class OddsContrast:
    """s = coef log sigma(o_w - o_l), o = m - log(1 - e^m) the log-odds of the row's mean log-likelihood m.

    Source: ORPO, arXiv 2403.07691, eq. 7.
    """

    coef: Number = 0.1
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


@register("trust")
@dataclass(frozen=True)
class RewardContrast:
    """s_g = sum over a group's unordered pairs of (dR - beta/2 dv) dv, over k - 1; dv the gap of log-ratios, dR of rewards.

    Groups of one are left out. Without rewards R = +1/4 for the preferred row and -1/4 for the other.
    Source: CoPG, arXiv 2406.19185.
    """

    beta: Number = 0.1
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("group",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.group is not None
        reward = b.score if b.score is not None else (2 * ranks(b) - 1) / 4
        one, other = all_pairs(b)
        weight, (index, groups) = row_weight(b, x), index_groups(b.group)
        dv, dr = x[one] - x[other], reward[one] - reward[other]
        each = (dr - float(self.beta) / 2 * dv) * dv * weight[one] * weight[other]
        size = group_sum(torch.ones_like(x), index, groups)
        total = group_sum(each, index[one], groups) / (size - 1).clamp(min=1)
        return total[size > 1], agreement(dv * dr.sign())


@register("trust")
@dataclass(frozen=True)
class PairwiseClip:
    """s = sum_i min(w_i r_i, w_i clip(r_i, 1 +- eps)) / 2 per unordered pair, w_i = sg[(R_i - R_j) r_j]; or, `joint`,
    min(w d, w clip(d, +-eps)) / 2 with d = log r_1 - log r_2 and w = sg[(R_1 - R_2) r_1 r_2]. Blind to shifts of R per prompt.

    Source: P3O, arXiv 2310.00212.
    """

    eps: Number = 0.2
    joint: bool = False
    level: ClassVar[Level] = "batch"
    per_group: ClassVar[bool] = True
    reads = ("score", "group")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.score is not None
        one, other = all_pairs(b)
        eps, r, weight = float(self.eps), ratio(x), row_weight(b, x)
        gap = b.score[one] - b.score[other]
        if self.joint:
            d, w = x[one] - x[other], (gap * r[one] * r[other]).detach()
            s = torch.minimum(w * d, w * d.clamp(-eps, eps)) / 2
        else:
            w, v = (gap * r[other]).detach(), (-gap * r[one]).detach()
            near = r.clamp(1 - eps, 1 + eps)
            s = (torch.minimum(w * r[one], w * near[one]) + torch.minimum(v * r[other], v * near[other])) / 2
        return s * weight[one] * weight[other], agreement((x[one] - x[other]) * gap.sign())


@register("credit")
@dataclass(frozen=True)
class ReferencePoint:
    """kl_shift [N] = max(0, batch mean of log pi - log pi_ref of mismatched answers), as the policy is before the update.

    `mismatched` [N]: log-probability (nats) of another prompt's answer after the row's prompt, `mismatched_ref` under the
    reference. Nothing is written where the policy cannot give them. Source: KTO, arXiv 2402.01306, sec. 4.2.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[dict[str, View]] = {
        "mismatched": View("mismatched", optional=True),
        "mismatched_ref": View("mismatched", of="ref", optional=True),
    }

    def __call__(self, b: Trajectories) -> Trajectories:
        now, ref = b.get("mismatched"), b.get("mismatched_ref")
        if now is None or ref is None:
            return b
        shift = (now - ref).detach().mean().clamp(min=0.0)
        return b.put({"kl_shift": shift.expand(len(now)).clone()})


@register("trust")
@dataclass(frozen=True)
class ProspectValue:
    """Per row -lam (1 - sigma(+-beta (x - z0))): + for preferred rows, - for the others; z0 is the reference point, `kl_shift`.

    Without it z0 = 0. Rows are preferred by their mark, or where their score exceeds 0.5.
    Source: KTO, arXiv 2402.01306.
    """

    beta: Number = 0.1
    gain: Number = 1.0
    loss: Number = 1.0
    level: ClassVar[Level] = "row"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        good, shift = ranks(b) > 0.5, b.get("kl_shift")
        z = float(self.beta) * (x - (0.0 if shift is None else shift.detach()))
        lam = torch.where(good, float(self.gain), float(self.loss)).to(x.dtype)
        metrics = {"desirable": good.to(x.dtype).sum() / max(len(x), 1)}
        if shift is not None:
            metrics["kl_shift"] = shift.detach().sum() / max(len(x), 1)
        return -lam * (1 - torch.where(good, z, -z).sigmoid()), metrics


@register("credit")
@dataclass(frozen=True)
class KeepExtremes:
    """Rows whose score is neither the highest nor the lowest of their group lose their mask: the best and the worst make the pair.

    Equal ones stay together; a group without differences forms no pair.
    """

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        assert b.group is not None and b.score is not None
        index, groups = index_groups(b.group)
        known = b.lengths > 0  # rows without outcome have lost their mask
        ends = []
        for worst, sign in ((torch.inf, "amin"), (-torch.inf, "amax")):
            end = b.score.new_full((groups,), worst)
            ends.append(end.scatter_reduce(0, index, torch.where(known, b.score, worst), sign)[index])
        return b.but(mask=b.valid & ((b.score == ends[0]) | (b.score == ends[1])).unsqueeze(1))


@register("terms")
@dataclass(frozen=True)
class Centering:
    """coef * mean over pairs of (x_w + x_l)^2, x the learned score at a row's end: scores are pinned near 0.

    Source: Eisenstein et al., Helping or Herding?, arXiv 2312.09244.
    """

    coef: Number = 0.01
    level: ClassVar[Level] = "group"
    reads = ("value", "group")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.value is not None
        x, (w, l) = last_value(b, b.value), ranked_pairs(b)  # noqa: E741
        weight = row_weight(b, x)
        off = ((x[w] + x[l]).square() * weight[w] * weight[l]).sum() / max(len(w), 1)
        return float(self.coef) * off, {"score_offset": off.detach()}


@register("terms")
@dataclass(frozen=True)
class LikeBest:
    """coef * negative log-likelihood of the rows that are preferred in their group: the mean over these rows of the sum or the
    mean over their decisions, or (`token`) the mean over all their decisions.
    """

    coef: Number = 1.0
    over: Literal["sum", "row", "token"] = "sum"
    level: ClassVar[Level] = "group"
    reads = ("logp", "group")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None
        best = torch.zeros_like(b.lengths, dtype=torch.bool)
        best[ranked_pairs(b)[0]] = True
        best = best & ~torch.zeros_like(best).index_fill(0, ranked_pairs(b)[1], True)
        logp = torch.where(b.valid, b.logp, 0.0)
        length = b.get("length")
        if self.over == "token":
            size = b.lengths if length is None else length
            weighted = row_weight(b, logp[:, 0]) * logp.sum(1)
            nll = -torch.where(best, weighted, 0.0).sum() / torch.where(best, size, 0).sum().clamp(min=1)
        else:
            each = logp.sum(1) if self.over == "sum" else row_mean(b, logp)
            nll = -torch.where(best, each * row_weight(b, each), 0.0).sum() / best.sum().clamp(min=1)
        return float(self.coef) * nll, {"nll_best": nll.detach()}
