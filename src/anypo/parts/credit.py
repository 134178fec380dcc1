"""Credit: outcome and values -> advantage, return targets, mask. A chain of pure links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.collect import informative_rows
from anypo.parts.statistics import (
    bootstrap_of,
    group_stats,
    group_sum,
    index_groups,
    next_valid,
    rewarded,
    scored,
    whiten,
)
from anypo.stages import Number, View
from anypo.types import Trajectories


def spread(b: Trajectories, a: Float[Tensor, " row"]) -> Float[Tensor, "row step"]:
    """One number per row on all its valid decisions, 0 elsewhere."""
    return torch.where(b.valid, a.unsqueeze(1), 0.0)


@register("credit")
@dataclass(frozen=True)
class Combine:
    """score = sum_k w_k scores_k over the channels a row has; the score itself, or the sum of rewards, where there are none.
    Rows of preference data without any of these keep their mark alone.
    """

    weights: tuple[float, ...] | None = None

    def __call__(self, b: Trajectories) -> Trajectories:
        marked = b.get("preferred") is not None and b.score is None and b.scores is None and b.reward is None
        return b if marked else scored(b, self.weights)


@register("credit")
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
    eps: float = 1e-6
    alone: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("group",) if self.by == "group" else ()

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        assert b.score is not None
        count, mean, std = group_stats(b.score, b.group if self.by == "group" else None)
        a = b.score - mean
        if self.center == "leave-one-out":
            a = a * count / (count - 1).clamp(min=1)
        if self.scale == "std":
            a = a / (std + self.eps)
        a = torch.where((std > 0) & ~b.score.isnan(), a, 0.0)
        if self.alone:
            a = torch.where(count == 1, b.score.nan_to_num() / (1 + self.eps), a)
        return b.but(advantage=spread(b, a))


@register("credit")
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
        assert b.score is not None and b.group is not None
        known, (count, mean, std) = ~b.score.isnan(), group_stats(b.score, b.group)
        norm, exact = b.get("score_norm"), b.get("grad_norm")
        rows = torch.ones_like(b.score) if norm is None else torch.where(b.valid, norm, 0.0).sum(1)
        w = torch.where(known, (rows if exact is None else exact).detach().clamp(min=0.0), 0.0)
        index, groups = index_groups(b.group)
        r = b.score.nan_to_num()
        dtype, w, r = r.dtype, w.double(), r.double()  # the sums over the others may be tiny beside a row's own
        total, weighted = group_sum(w, index, groups)[index], group_sum(w * r, index, groups)[index]
        if self.leave_one_out:
            total, weighted = total - w, weighted - w * r
            mean = (mean * count - r) / (count - 1).clamp(min=1)
        baseline = torch.where(total > 1e-12, weighted / total.clamp(min=1e-12), mean)
        return b.but(advantage=spread(b, torch.where((std > 0) & known, r - baseline, 0.0).to(dtype)))


def discounted(
    x: Float[Tensor, "row step"], valid: Bool[Tensor, "row step"], factor: float
) -> Float[Tensor, "row step"]:
    """y_t = x_t + factor y_{t+1} at valid decisions, y_t = x_t + y_{t+1} at the others, where x is 0; y is 0 beyond the row.

    Backwards in time, all rows at once, on columns that lie together in memory.
    """
    columns = x.T.clone(memory_format=torch.contiguous_format)
    factors = torch.where(valid, x.new_tensor(factor), x.new_ones(())).T.contiguous().unbind(0)
    out = columns.unbind(0)
    for t in reversed(range(len(out) - 1)):
        out[t].addcmul_(factors[t], out[t + 1])
    return columns.T


@register("credit")
@dataclass(frozen=True)
class Returns:
    """A_t = sum_{k >= t} gamma^(k-t) r_k along the row's valid decisions, no baseline."""

    gamma: Number = 1.0

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        assert b.reward is not None
        reward = torch.where(b.valid, b.reward, 0.0)
        return b.but(advantage=torch.where(b.valid, discounted(reward, b.valid, float(self.gamma)), 0.0))


@register("credit")
@dataclass(frozen=True)
class Gae:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; returns R = A + V; V_old = V.

    V after the row's last decision is the bootstrap, 0 where the row is done. Source: arXiv 1506.02438, eq. 16.
    """

    gamma: Number = 0.99
    lam: Number = 0.95
    reads = ("value",)
    bootstraps = True

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        assert b.reward is not None and b.value is not None
        valid, value, gamma = b.valid, b.value.detach(), float(self.gamma)
        end = bootstrap_of(b, value).unsqueeze(1)
        following = torch.cat([value, end], 1).gather(1, next_valid(valid))
        delta = torch.where(valid, b.reward + gamma * following - value, 0.0)
        advantage = torch.where(valid, discounted(delta, valid, gamma * float(self.lam)), 0.0)
        return b.but(advantage=advantage, returns=torch.where(valid, advantage + value, 0.0), value_old=value)


@register("credit")
@dataclass(frozen=True)
class NStep:
    """R_t = sum_{k<n} gamma^k r_{t+k} + gamma^n V_{t+n}, shorter at the end of a row; A_t = R_t - V_t.

    Source: A3C, arXiv 1602.01783, sec. 4.
    """

    n: int = 5
    gamma: Number = 0.99
    reads = ("value",)
    bootstraps = True

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        assert b.reward is not None and b.value is not None
        value = b.value.detach()
        end, after = bootstrap_of(b, value).unsqueeze(1), next_valid(b.valid)
        target = value
        for _ in range(self.n):
            target = b.reward + float(self.gamma) * torch.cat([target, end], 1).gather(1, after)
        target = torch.where(b.valid, target, 0.0)
        return b.but(advantage=torch.where(b.valid, target - value, 0.0), returns=target, value_old=value)


@register("credit")
@dataclass(frozen=True)
class Whiten:
    """A <- (A - mean) / (std + 1e-8) over all valid decisions of the collected batch; return targets stay as they are."""

    ddof: int = 1
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        assert b.advantage is not None
        return b.but(advantage=whiten(b.advantage, b.valid, self.ddof))


@register("credit")
@dataclass(frozen=True)
class KeepInformative:
    """Groups whose scores are all equal lose their mask, so their decisions leave every denominator."""

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        return b.but(mask=b.valid & informative_rows(b).unsqueeze(1))


@register("credit")
@dataclass(frozen=True)
class DropTruncated:
    """Rows cut by their generation budget lose their mask; nothing happens where the batch does not say which were."""

    def __call__(self, b: Trajectories) -> Trajectories:
        return b if b.truncated is None else b.but(mask=b.valid & (b.truncated == 0).unsqueeze(1))
