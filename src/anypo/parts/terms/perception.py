"""Terms that compare the policy with itself under a partly hidden input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.log_ratio import k3
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Share
from anypo.stages import Level, Reduce
from anypo.types import Trajectories
from anypo.views import View


@register_part("terms")
@dataclass(frozen=True)
class Perception:
    """- coef * token-mean of k3 + eta * (H + H_ablated): decisions are to depend on the input.

    k3 = exp(d) - d - 1 with d = log pi(. | ablated input) - log pi, d limited to +-20 and k3 to 10; H = - token-mean of log pi.
    The ablated pass is made once per batch, without gradient, with a share `hidden` of the input hidden (in `logp_ablated`).
    Source: PAPO, arXiv 2507.06448.
    """

    coef: NonNegative[Number] = 0.02
    eta: NonNegative[Number] = 0.0
    hidden: Share[float] = 0.6
    level: ClassVar[Level] = "decision"
    reads = ("logp", "logp_ablated")

    @property
    def views(self) -> dict[str, View]:
        return {"logp_ablated": View("logp", ablate=self.hidden)}

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        logp = b.need("logp")
        ablated = b.get("logp_ablated").detach()
        d = (ablated - logp).clamp(-20.0, 20.0)
        gap = k3(d).clamp(max=10.0)
        loss = -float(self.coef) * token_mean(gap, b)
        if float(self.eta):
            loss = loss - float(self.eta) * (token_mean(logp, b) + token_mean(ablated, b))
        return loss, {"perception": masked_mean(gap.detach(), b.mask)}
