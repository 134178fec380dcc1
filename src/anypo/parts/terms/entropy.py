"""Entropy bonus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level, Reduce
from anypo.types import Trajectories


@register_part("terms")
@dataclass(frozen=True)
class Entropy:
    """- coef * H: a bonus for the policy's entropy. Source: A3C, arXiv 1602.01783, sec. 4."""

    coef: NonNegative[Number] = 0.01
    level: ClassVar[Level] = "decision"
    reads = ("entropy",)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        return -float(self.coef) * reduce(b.need("entropy"), b), {}
