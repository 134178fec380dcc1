"""A head regressed onto the median of the returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("critic")
@dataclass(frozen=True)
class Median:
    """coef * token-mean of log(2 cosh(y/2)) = softplus(y) - y/2, y = R - u: u is drawn to the median of R.

    Source: BRRL, arXiv 2604.18578, written up to the constant log 2 as softplus(y) - y/2.
    """

    coef: NonNegative[Number] = 0.5
    heads: ClassVar[tuple[str, ...]] = ("median",)
    level: ClassVar[Level] = "decision"
    reads = ("median", "returns")

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        y = b.need("returns").detach() - b.get("median")
        loss = token_mean(torch.nn.functional.softplus(y) - y / 2, b)
        return float(self.coef) * loss, {"median_loss": loss.detach()}
