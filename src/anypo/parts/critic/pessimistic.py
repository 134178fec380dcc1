"""A pessimistic state value of two heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.targets import soft_min
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Share
from anypo.stages import Level
from anypo.types import Trajectories

HEADS = ("value", "value_b")


@register_part("critic")
@dataclass(frozen=True)
class PessimisticValue:
    """coef * token-mean of 0.5 [huber(V, R) + huber(V_old + clip(V - V_old, +-clip), R)], V the soft minimum of two heads.

    Source: SAFE, ryyzn9/SAFE, models/critic.py and trainers/safe.py.
    """

    coef: NonNegative[Number] = 0.5
    alpha: Share[float] = 0.3
    clip: NonNegative[float] = 0.2
    delta: NonNegative[float] = 0.5
    heads: ClassVar[tuple[str, ...]] = HEADS
    level: ClassVar[Level] = "decision"
    reads = ("value", "returns", "value_old")

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        value, target, value_old = soft_min(b, self.alpha), b.need("returns").detach(), b.need("value_old")
        near = value_old + (value - value_old).clamp(-self.clip, self.clip)

        def huber(v: Tensor) -> Tensor:
            return torch.nn.functional.huber_loss(v, target, reduction="none", delta=self.delta)

        loss = token_mean(0.5 * (huber(value) + huber(near)), b)
        return float(self.coef) * loss, {"value_loss": loss.detach()}
