"""Reduce: surrogate -> scalar. It only averages: the mask counts (enters the denominator), the weight scales (does not)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.stages import Level
from anypo.types import Trajectories


@register("reduce")
@dataclass(frozen=True)
class Mean:
    """sum_{i,t} c_i m w s, a linear average over decisions:

    token: c = 1 / sum(m). row: c_i = 1 / (N |o_i|), the mean of row means. sum: c = 1 / N, the mean of row sums (the
    unbiased one for outcome scores). constant: c = 1 / (N L), L = `length`, else the batch's budget, else its width T.
    An empty row adds 0 and stays in N. A surrogate per row counts like the same number on each of its decisions.
    """

    over: Literal["token", "row", "sum", "constant"] = "token"
    length: int | None = None

    @property
    def level(self) -> Level:
        return "decision" if self.over == "token" else "row"

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row 1"]:
        """c_i, so that the average is sum_{i,t} c_i m w s."""
        lengths = b.lengths.unsqueeze(1).to(torch.float64)
        rows = max(len(lengths), 1)
        if self.over == "token":
            return torch.ones_like(lengths) / lengths.sum().clamp(min=1)
        if self.over == "row":
            return 1 / (rows * lengths.clamp(min=1))
        if self.over == "sum":
            return torch.full_like(lengths, 1 / rows)
        return torch.full_like(lengths, 1 / (rows * (self.length or b.budget or b.shape[1])))

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
        s = s if s.ndim == 2 else s.unsqueeze(1)
        s = s if b.weight is None else s * b.weight
        return torch.where(b.valid, s * self.coefficients(b).to(s.dtype), 0.0).sum()
