"""State values regressed onto returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.outcomes import finished
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("critic")
@dataclass(frozen=True)
class Value:
    """coef * token-mean of 0.5 (V - R)^2; with `clip`, the larger of that and the same for V_old + clip(V - V_old, +-clip).

    Source: A3C, arXiv 1602.01783, sec. 4; clipping as in PPO's reference implementation.
    """

    coef: NonNegative[Number] = 0.5
    clip: NonNegative[Number] | None = None
    level: ClassVar[Level] = "decision"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("value", "returns") if self.clip is None else ("value", "returns", "value_old")

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        value, target = b.need("value"), b.need("returns").detach()
        error = (value - target).square()
        if self.clip is not None:
            value_old = b.need("value_old")
            bound = float(self.clip)
            near = value_old + (value - value_old).clamp(-bound, bound)
            error = torch.maximum(error, (near - target).square())
        loss = token_mean(0.5 * error, b)
        return float(self.coef) * loss, {"value_loss": loss.detach(), "explained_variance": explained(b)}


@register_part("critic")
@dataclass(frozen=True)
class FinishedValue(Value):
    """The value loss on all decisions of the rows that are finished; the others wait. Source: T-PPO, arXiv 2506.15050."""

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return super().__call__(b.but(mask=b.valid & finished(b).unsqueeze(1)))


def explained(b: Trajectories) -> Tensor:
    """1 - Var(R - V) / Var(R) over valid decisions: 1 is a perfect critic, 0 a constant one."""
    returns = b.need("returns")
    both = torch.stack([returns - b.need("value").detach(), returns])
    if b.mask is None and returns.numel():
        left, total = both.var((1, 2), correction=0).unbind()
        return 1 - left / total.clamp(min=1e-12)
    valid, count = b.valid, b.valid.sum().clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0.0).sum((1, 2), keepdim=True) / count

    left, total = mean((both - mean(both)).square()).flatten()
    return 1 - left / total.clamp(min=1e-12)
