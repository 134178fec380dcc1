"""Reduce: surrogate -> scalar. It only averages: the mask counts (enters the denominator), the weight scales (does not)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.statistics import group_sum, index_groups
from anypo.stages import Level
from anypo.types import Trajectories, whole


@register("reduce")
@dataclass(frozen=True)
class Mean:
    """sum_{i,t} c_i m w s, a linear average over decisions:

    token: c = 1 / sum(m). row: c_i = 1 / (N |o_i|), the mean of row means. sum: c = 1 / N, the mean of row sums (the
    unbiased one for outcome scores). constant: c = 1 / (N L), L = `length`, else the batch's budget, else its width T.
    group: c_i = 1 / (M n_i |o_i|), the mean over M groups of the row means of their n_i rows.
    An empty row adds 0 and stays in N. A surrogate per row counts like the same number on each of its decisions.
    """

    over: Literal["token", "row", "sum", "constant", "group"] = "token"
    length: int | None = None

    @property
    def level(self) -> Level:
        return {"token": "decision", "group": "group"}.get(self.over, "row")  # pyright: ignore[reportReturnType]

    @property
    def reads(self) -> tuple[str, ...]:
        return ("group",) if self.over == "group" else ()

    def even(self, b: Trajectories) -> bool:
        """Whether every decision is known to have the same share, 1/n."""
        return self.over == "token" and whole(b.valid) and type(self).coefficients is Mean.coefficients

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row 1"]:
        """c_i, so that the average is sum_{i,t} c_i m w s."""
        if self.over == "token":
            return b.valid.sum().clamp(min=1).to(torch.float64).reciprocal().expand(b.shape[0], 1)
        lengths = b.lengths.unsqueeze(1).to(torch.float64)
        rows = max(len(lengths), 1)
        if self.over == "row":
            return 1 / (rows * lengths.clamp(min=1))
        if self.over == "group":
            assert b.group is not None
            index, groups = index_groups(b.group)
            members = group_sum(torch.ones_like(lengths[:, 0]), index, groups)[index].unsqueeze(1)
            return 1 / (max(groups, 1) * members * lengths.clamp(min=1))
        if self.over == "sum":
            return torch.full_like(lengths, 1 / rows)
        return torch.full_like(lengths, 1 / (rows * (self.length or b.budget or b.shape[1])))

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
        s = s if s.ndim == 2 else s.unsqueeze(1)
        s = s if b.weight is None else s * b.weight
        if self.even(b):
            return s.mean()
        return torch.where(b.valid, s * self.coefficients(b).to(s.dtype), 0.0).sum()


@register("reduce")
@dataclass(frozen=True)
class Decoupled(Mean):
    """alpha times the token mean over every row's first decision (its choice of mode), plus the token mean over all others.

    Source: Thinkless, arXiv 2505.13379; means over the batch as in VainF/Thinkless.
    """

    alpha: float = 1e-3
    level: ClassVar[Level] = "row"  # pyright: ignore[reportIncompatibleMethodOverride]

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row step"]:
        valid = b.valid
        first = valid & (valid.cumsum(1) == 1)
        rest = valid & ~first
        share = [m.to(torch.float64) / m.sum().clamp(min=1) for m in (first, rest)]
        return self.alpha * share[0] + share[1]
