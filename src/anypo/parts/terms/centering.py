"""Center the learned scores of a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import last_value
from anypo.parts.ops.pairs import ranked_pairs, row_weight
from anypo.parts.registry import register_part
from anypo.stages import Level, Reduce
from anypo.types import Trajectories


@register_part("terms")
@dataclass(frozen=True)
class Centering:
    """coef * mean over pairs of (x_w + x_l)^2, x the learned score at a row's end: scores are pinned near 0.

    Source: Eisenstein et al., Helping or Herding?, arXiv 2312.09244.
    """

    coef: Number = 0.01
    level: ClassVar[Level] = "group"
    reads = ("value", "group")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        x, (w, l) = last_value(b, b.need("value")), ranked_pairs(b)  # noqa: E741
        weight = row_weight(b, x)
        off = ((x[w] + x[l]).square() * weight[w] * weight[l]).sum() / max(len(w), 1)
        return float(self.coef) * off, {"score_offset": off.detach()}
