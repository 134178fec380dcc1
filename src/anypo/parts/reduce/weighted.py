"""Averages with weights per decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import weighted_sum
from anypo.parts.ops.segments import positive_scale
from anypo.parts.reduce.means import Mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@dataclass(frozen=True)
class WeightedMean(Mean):
    """sum_{i,t} c_{i,t} m w s with coefficients of a subclass."""

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
        return weighted_sum(s, self.coefficients(b), b)


@register_part("reduce")
@dataclass(frozen=True)
class StepWidthMean(WeightedMean):
    """The mean with every decision divided by the width of its step, `step_width` [N, T], to which its gradient is proportional.

    Source: GRPO-Guard, arXiv 2510.22319.
    """

    views: ClassVar[dict[str, View]] = {"step_width": View("step_width")}

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, "step_width")

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row step"]:
        return super().coefficients(b) / positive_scale(b, "step_width")


@register_part("reduce")
@dataclass(frozen=True)
class ScaledMean(WeightedMean):
    """c_i <- coef c_i: the weight of the policy's own samples beside other objectives. Source: CHORD, arXiv 2508.11408."""

    coef: NonNegative[Number] = 1.0

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row 1"]:
        return float(self.coef) * super().coefficients(b)


@register_part("reduce")
@dataclass(frozen=True)
class Decoupled(WeightedMean):
    """alpha times the token mean over every row's first decision (its choice of mode), plus the token mean over all others.

    Source: Thinkless, arXiv 2505.13379; means over the batch as in VainF/Thinkless.
    """

    alpha: NonNegative[float] = 1e-3
    level: ClassVar[Level] = "row"  # pyright: ignore[reportIncompatibleMethodOverride]

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row step"]:
        valid = b.valid
        first = valid & (valid.cumsum(1) == 1)
        rest = valid & ~first
        share = [m.to(torch.float64) / m.sum().clamp(min=1) for m in (first, rest)]
        return self.alpha * share[0] + share[1]
