"""State values regressed onto returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.outcomes import finished, head_field
from anypo.parts.registry import register_part
from anypo.ranges import Named, NonNegative
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("critic")
@dataclass(frozen=True)
class Value:
    """coef * token-mean of 0.5 (V - R)^2; with `clip`, the larger of that and the same for V_old + clip(V - V_old, +-clip).

    head: V is the value head of that name, R what a link of credit with the same head writes.
    Source: A3C, arXiv 1602.01783, sec. 4; clipping as in PPO's reference implementation.
    """

    coef: NonNegative[Number] = 0.5
    clip: NonNegative[Number] | None = None
    head: Named[str] = "value"
    level: ClassVar[Level] = "decision"

    @property
    def label(self) -> str:
        return self.head

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)

    @property
    def reads(self) -> tuple[str, ...]:
        fields = ("returns",) if self.clip is None else ("returns", "value_old")
        return (self.head, *(head_field(name, self.head) for name in fields))

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        value, returns = b.need(self.head), b.need(head_field("returns", self.head))
        target = returns.detach()
        error = (value - target).square()
        if self.clip is not None:
            value_old = b.need(head_field("value_old", self.head))
            bound = float(self.clip)
            near = value_old + (value - value_old).clamp(-bound, bound)
            error = torch.maximum(error, (near - target).square())
        loss = token_mean(0.5 * error, b)
        variance = head_field("explained_variance", self.head)
        return float(self.coef) * loss, {f"{self.head}_loss": loss.detach(), variance: explained(value, returns, b)}


@register_part("critic")
@dataclass(frozen=True)
class FinishedValue(Value):
    """The value loss on all decisions of the rows that are finished; the others wait. Source: T-PPO, arXiv 2506.15050."""

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return super().__call__(b.but(mask=b.valid & finished(b).unsqueeze(1)))


def explained(value: Tensor, returns: Tensor, b: Trajectories) -> Tensor:
    """1 - Var(R - V) / Var(R) over valid decisions: 1 is a perfect critic, 0 a constant one.

    Args:
        value: V.
        returns: R.
        b: says which decisions are valid.
    """
    both = torch.stack([returns - value.detach(), returns])
    if b.mask is None and returns.numel():
        left, total = both.var((1, 2), correction=0).unbind()
        return 1 - left / total.clamp(min=1e-12)
    valid, count = b.valid, b.valid.sum().clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0.0).sum((1, 2), keepdim=True) / count

    left, total = mean((both - mean(both)).square()).flatten()
    return 1 - left / total.clamp(min=1e-12)
