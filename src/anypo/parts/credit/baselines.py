"""Baselines over groups of rows or over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from anypo.parts.ops.groups import group_stats, group_sum, index_groups
from anypo.parts.ops.outcomes import scored, spread
from anypo.parts.registry import register_part
from anypo.ranges import Finite, Positive
from anypo.types import Trajectories
from anypo.views import View


@register_part("credit")
@dataclass(frozen=True)
class Combine:
    """score = sum_k w_k scores_k over the channels a row has; the score itself, or the sum of rewards, where there are none.
    Rows of preference data without any of these keep their mark alone.
    """

    weights: tuple[Finite[float], ...] | None = None

    def __call__(self, b: Trajectories) -> Trajectories:
        marked = b.get("preferred") is not None and b.score is None and b.scores is None and b.reward is None
        return b if marked else scored(b, self.weights)


@register_part("credit")
@dataclass(frozen=True)
class Baseline:
    """A_i = (s_i - center) / (scale + eps), over the rows of the same request (`group`) or of the whole `batch`.

    center: `mean`; `leave-one-out`, the mean of the others = G/(G-1) (s_i - mean). scale: `std` (ddof=1) or none.
    A group of one has A = 0 (its score / (1 + eps) with `alone`), and so has a group without variance.
    Source: GRPO, arXiv 2402.03300, sec. 4.1.2; leave-one-out: RLOO, arXiv 2402.14740, eq. 8.
    """

    by: Literal["group", "batch"] = "group"
    center: Literal["mean", "leave-one-out"] = "mean"
    scale: Literal["std"] | None = "std"
    eps: Positive[float] = 1e-6
    alone: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("group",) if self.by == "group" else ()

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        count, mean, std = group_stats(score, b.group if self.by == "group" else None)
        a = score - mean
        if self.center == "leave-one-out":
            a = a * count / (count - 1).clamp(min=1)
        if self.scale == "std":
            a = a / (std + self.eps)
        a = torch.where((std > 0) & ~score.isnan(), a, 0.0)
        if self.alone:
            a = torch.where(count == 1, score.nan_to_num() / (1 + self.eps), a)
        return b.but(advantage=spread(b, a))


@register_part("credit")
@dataclass(frozen=True)
class WeightedBaseline:
    """A_i = R_i - sum_j w_j R_j / sum_j w_j over the group, w_j = |grad log pi(y_j)|^2: the scalar baseline of least variance.

    w: `grad_norm` [N] where the batch has it, else the sum over the row of `score_norm` = 1 - 2 pi_a + sum_v pi_v^2, its square
    in the logits, else 1. leave_one_out: j != i, unbiased. A group of one or without variance has A = 0.
    Source: OBLR-PO, arXiv 2511.23310, theorem on the optimal baseline.
    """

    leave_one_out: bool = False
    views: ClassVar[dict[str, View]] = {"score_norm": View("score_norm")}
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score, group = b.need("score"), b.need("group")
        known, (count, mean, std) = ~score.isnan(), group_stats(score, group)
        norm, exact = b.get("score_norm"), b.get("grad_norm")
        rows = torch.ones_like(score) if norm is None else torch.where(b.valid, norm, 0.0).sum(1)
        w = torch.where(known, (rows if exact is None else exact).detach().clamp(min=0.0), 0.0)
        index, groups = index_groups(group)
        r = score.nan_to_num()
        dtype, w, r = r.dtype, w.double(), r.double()  # the sums over the others may be tiny beside a row's own
        total, weighted = group_sum(w, index, groups)[index], group_sum(w * r, index, groups)[index]
        if self.leave_one_out:
            total, weighted = total - w, weighted - w * r
            mean = (mean * count - r) / (count - 1).clamp(min=1)
        baseline = torch.where(total > 1e-12, weighted / total.clamp(min=1e-12), mean)
        return b.but(advantage=spread(b, torch.where((std > 0) & known, r - baseline, 0.0).to(dtype)))
