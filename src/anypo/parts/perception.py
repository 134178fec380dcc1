"""Terms that compare the policy with itself under a partly hidden input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.parts._register import register
from anypo.parts.reduce import Mean
from anypo.parts.statistics import masked_mean
from anypo.stages import Level, Number, Reduce, View
from anypo.types import Trajectories


@register("terms")
@dataclass(frozen=True)
class Perception:
    """- coef * token-mean of k3 + eta * (H + H_ablated): decisions are to depend on the input.

    k3 = exp(d) - d - 1 with d = log pi(. | ablated input) - log pi, d limited to +-20 and k3 to 10; H = - token-mean of log pi.
    The ablated pass is made once per batch, without gradient, with a share `hidden` of the input hidden (in `logp_ablated`).
    Source: PAPO, arXiv 2507.06448.
    """

    coef: Number = 0.02
    eta: Number = 0.0
    hidden: float = 0.6
    level: ClassVar[Level] = "decision"
    reads = ("logp", "logp_ablated")

    @property
    def views(self) -> dict[str, View]:
        return {"logp_ablated": View("logp", ablate=self.hidden)}

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None
        ablated = b.get("logp_ablated").detach()
        d = (ablated - b.logp).clamp(-20.0, 20.0)
        k3 = (d.exp() - d - 1).clamp(-10.0, 10.0)
        mean = Mean("token")
        loss = -float(self.coef) * mean(k3, b)
        if float(self.eta):
            loss = loss - float(self.eta) * (mean(b.logp, b) + mean(ablated, b))
        return loss, {"perception": masked_mean(k3.detach(), b.valid)}
