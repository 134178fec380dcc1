"""Objectives that contrast the right rows of a group with the wrong ones: one number per group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.groups import group_sum, index_groups
from anypo.parts.ops.pairs import row_weight
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Positive
from anypo.stages import Level
from anypo.types import Trajectories


def classes(b: Trajectories) -> tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]]:
    """Right rows (score > 0.5) and wrong ones; a row without decisions or outcome is neither."""
    score = b.need("score")
    there = b.lengths > 0
    return there & (score > 0.5), there & (score <= 0.5)


def log_sum(
    z: Float[Tensor, " row"], w: Float[Tensor, " row"], index: Tensor, groups: int, anchor: float
) -> Float[Tensor, " group"]:
    """log(anchor + sum_i w_i exp(z_i)) over each group, without overflow; w = 0 leaves a row out."""
    top = z.new_full((groups,), 0.0 if anchor else -torch.inf)
    top = top.scatter_reduce(0, index, torch.where(w > 0, z.detach(), -torch.inf), "amax")
    top = torch.where(top.isfinite(), top, 0.0)
    terms = torch.where(w > 0, w * (torch.where(w > 0, z, 0.0) - torch.where(w > 0, top[index], 0.0)).exp(), 0.0)
    total = anchor * (-top).exp() + group_sum(terms, index, groups)
    return top + torch.where(total > 0, total, 1.0).log()


@register_part("trust")
@dataclass(frozen=True)
class SetContrast:
    """s_g = -log(1 + sum_{right} e^{-x_i/tau}) - log(1 + sum_{wrong} e^{x_i/tau}), x_i the row's log-ratio: rewards as labels.

    |ds/dx_i| <= 1/tau, and falls as the row is better classified. degenerate: groups of one class are kept, or skipped but
    counted. Source: REAL, arXiv 2602.05630.
    """

    tau: Positive[Number] = 0.5
    degenerate: Literal["keep", "skip"] = "keep"
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("score", "group")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        index, groups = index_groups(b.need("group"))
        right, wrong = classes(b)
        w, z = row_weight(b, x), x / float(self.tau)
        s = -log_sum(-z, w * right, index, groups, 1.0) - log_sum(z, w * wrong, index, groups, 1.0)
        if self.degenerate == "skip":
            both = (group_sum(right.to(x.dtype), index, groups) > 0) & (group_sum(wrong.to(x.dtype), index, groups) > 0)
            s = torch.where(both, s, 0.0)
        return s, {"right": right.to(x.dtype).mean() if len(x) else x.new_zeros(())}


@register_part("trust")
@dataclass(frozen=True)
class ShortestContrast:
    """s_g = sum_{right} w_i l_i - tau log mean_{wrong} e^{l_j/tau},  l = mean log pi of the row: no ratio, no clipping.

    w = softmax over the right rows of r/lam with the length reward r = 1 - |o|/T: among right answers the short ones are
    raised, and none is ever pushed down. A group that lacks a class counts as 0. Source: DRPO, arXiv 2510.04474.
    """

    tau: Positive[Number] = 10.0
    lam: NonNegative[Number] = 0.1
    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True
    reads = ("logp", "score", "group")
    uses_ratio = False

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        index, groups = index_groups(b.need("group"))
        right, wrong = classes(b)
        likelihood, tau = b.row_mean(b.need("logp")), float(self.tau)
        weight = row_weight(b, likelihood)
        short = (1 - b.lengths.to(likelihood.dtype) / b.shape[1]) / float(self.lam)
        w = weight * right
        share = torch.where(w > 0, w * (short - log_sum(short, w, index, groups, 0.0)[index]).exp(), 0.0)
        w = weight * wrong
        count = group_sum(w, index, groups)
        pushed = log_sum(likelihood / tau, w, index, groups, 0.0) - torch.where(count > 0, count, 1.0).log()
        both = (group_sum(weight * right, index, groups) > 0) & (count > 0)
        s = torch.where(both, group_sum(share * likelihood, index, groups) - tau * pushed, 0.0)
        return s, {"contrasted": both.to(s.dtype).mean() if groups else s.new_zeros(())}
