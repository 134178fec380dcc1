"""Averages over tokens, rows and groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from anypo.parts.ops.averages import Over, average, coefficients, token_mean
from anypo.parts.registry import register_part
from anypo.ranges import Count
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("reduce")
@dataclass(frozen=True)
class GroupMean:
    """y = 1/G sum_g s_g, the plain mean of one number per group; what a term gives per decision is averaged: sum m w s / sum m."""

    level: ClassVar[Level] = "group"
    per_group: ClassVar[bool] = True

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
        return token_mean(s, b) if s.ndim == 2 else s.sum() / max(len(s), 1)


@register_part("reduce")
@dataclass(frozen=True)
class Mean:
    """sum_{i,t} c_i m w s, a linear average over decisions:

    token: c = 1 / sum(m). row: c_i = 1 / (N |o_i|), the mean of row means. sum: c = 1 / N, the mean of row sums (the
    unbiased one for outcome scores). constant: c = 1 / (N L), L = `length`, else the batch's budget, else its width T.
    group: c_i = 1 / (M n_i |o_i|), the mean over M groups of the row means of their n_i rows.
    An empty row adds 0 and stays in N. A surrogate per row counts like the same number on each of its decisions.
    """

    over: Over = "token"
    length: Count[int] | None = None

    @property
    def level(self) -> Level:
        return {"token": "decision", "group": "group"}.get(self.over, "row")  # pyright: ignore[reportReturnType]

    @property
    def reads(self) -> tuple[str, ...]:
        return ("group",) if self.over == "group" else ()

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row #step"]:
        """c_i, so that the average is sum_{i,t} c_i m w s."""
        return coefficients(b, self.over, self.length)

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
        return average(s, b, self.over, self.length)
