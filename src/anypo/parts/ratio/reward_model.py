"""A learned score of the row in the place of a log-ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.parts.ops.log_ratio import last_value
from anypo.parts.registry import register_part
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("ratio")
@dataclass(frozen=True)
class LearnedScore:
    """x_i = V at the row's last decision, which is read at its last token but one, the end-of-text token being the last: a scalar
    score of the whole row, learned like a value function. Source: arXiv 2203.02155, sec. 3.5.
    """

    level: ClassVar[Level] = "row"
    reads = ("value",)
    heads: ClassVar[tuple[str, ...]] = ("value",)

    def __call__(self, b: Trajectories) -> Tensor:
        return last_value(b, b.need("value"))
