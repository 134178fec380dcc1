"""Log-ratios of an inner layer's policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.parts.ops.log_ratio import log_ratio
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("ratio")
@dataclass(frozen=True)
class InnerRatio:
    """x = log pi_l - log pi_l,old per token, of the policy pi_l = softmax(h_l W_U) that block l of the network already forms.

    layer: l, from 0; in a shallower network its last block but one. Samples still come from the whole network.
    Source: BuPO, arXiv 2512.19673.
    """

    layer: NonNegative[int] = 5
    level: ClassVar[Level] = "decision"
    reads = ("logp", "logp_old")

    @property
    def views(self) -> dict[str, View]:
        return {"logp_old": View("logp", layer=self.layer)}

    @property
    def live(self) -> dict[str, View]:
        return {"logp": View("logp", layer=self.layer)}

    def __call__(self, b: Trajectories) -> Tensor:
        return log_ratio(b)
