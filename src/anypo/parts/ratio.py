"""Ratio: logp and an anchor -> the log-ratio x, per decision [N, T] or per row [N]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.statistics import last_valid
from anypo.stages import Level, View
from anypo.types import Trajectories, whole


@register("ratio")
@dataclass(frozen=True)
class LogRatio:
    """x = log pi - log pi_anchor, per `token`; or one per `row`: the row's mean (geometric mean of the ratios) or sum.

    per: token | row. how (rows only): mean | sum, over the row's decisions (over `length` [N] of them where a row is given as
    one sum). anchor: old | ref | none, the log-probability itself.
    Source: PPO, arXiv 1707.06347, eq. 6; row mean: GSPO, arXiv 2507.18071, eq. 7.
    """

    per: Literal["token", "row"] = "token"
    how: Literal["mean", "sum"] = "mean"
    anchor: Literal["old", "ref", "none"] = "old"

    @property
    def level(self) -> Level:
        return "decision" if self.per == "token" else "row"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp",) if self.anchor == "none" else ("logp", f"logp_{self.anchor}")

    def __call__(self, b: Trajectories) -> Tensor:
        assert b.logp is not None
        x = torch.where(b.valid, b.logp, 0.0) if self.anchor == "none" else log_ratio(b, self.anchor)
        if self.per == "token":
            return x
        return row_mean(b, x) if self.how == "mean" else x.sum(1)


def row_mean(b: Trajectories, x: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """Mean of x over each row's decisions; where a row stands as one sum, over the `length` it says it has."""
    length = b.get("length")
    return b.row_mean(x) if length is None else torch.where(b.valid, x, 0.0).sum(1) / length.clamp(min=1)


def last_value(b: Trajectories, value: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """What stands at each row's last valid decision; 0 for a row without any."""
    return torch.where(last_valid(b.valid), value, 0.0).sum(1)


def log_ratio(b: Trajectories, anchor: str = "old") -> Float[Tensor, "row step"]:
    """log pi - log pi_anchor on valid decisions, 0 elsewhere."""
    logp, other = b.logp, b.get(f"logp_{anchor}")
    assert logp is not None
    x = logp - other
    return x if whole(b.valid) else torch.where(b.valid, x, 0.0)


@register("ratio")
@dataclass(frozen=True)
class LearnedScore:
    """x_i = V at the row's last decision, which is read at its last token but one, the end-of-text token being the last: a scalar
    score of the whole row, learned like a value function. Source: arXiv 2203.02155, sec. 3.5.
    """

    level: ClassVar[Level] = "row"
    reads = ("value",)
    heads: ClassVar[tuple[str, ...]] = ("value",)

    def __call__(self, b: Trajectories) -> Tensor:
        assert b.value is not None
        return last_value(b, b.value)


@register("ratio")
@dataclass(frozen=True)
class MinPrefix:
    """x_t + min_{j<t} x_j over the row's earlier valid decisions; the minimum over none is 0 (ratio 1).

    The cheapest correction for a shifted prefix: the smallest earlier ratio stands in for their product. `include_one`
    takes min(1, .), which never amplifies. Source: MinPRO, arXiv 2601.22718, sec. 3 (as described; no code released).
    """

    include_one: bool = False
    level: ClassVar[Level] = "row"
    reads = ("logp", "logp_old")

    def __call__(self, b: Trajectories) -> Tensor:
        x, valid = log_ratio(b), b.valid
        before = torch.where(valid, x, math.inf).cummin(1).values
        before = torch.cat([torch.full_like(before[:, :1], math.inf), before[:, :-1]], 1)
        before = torch.where(before.isinf(), 0.0, before)
        if self.include_one:
            before = before.clamp(max=0.0)
        return torch.where(valid, x + before, 0.0)


@register("ratio")
@dataclass(frozen=True)
class InnerRatio:
    """x = log pi_l - log pi_l,old per token, of the policy pi_l = softmax(h_l W_U) that block l of the network already forms.

    layer: l, from 0; in a shallower network its last block but one. Samples still come from the whole network.
    Source: BuPO, arXiv 2512.19673.
    """

    layer: int = 5
    level: ClassVar[Level] = "decision"
    reads = ("logp", "logp_old")

    @property
    def views(self) -> dict[str, View]:
        return {"logp_old": View("logp", layer=self.layer)}

    @property
    def live(self) -> dict[str, View]:
        return {"logp": View("logp", layer=self.layer)}

    def __call__(self, b: Trajectories) -> Tensor:
        return log_ratio(b)
