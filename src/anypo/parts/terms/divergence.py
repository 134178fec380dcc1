"""Divergence from an anchor as a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import average, token_mean
from anypo.parts.ops.log_ratio import divergence, log_ratio
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import Count, NonNegative
from anypo.stages import Level, Reduce
from anypo.types import Trajectories
from anypo.views import Refresh


@register_part("terms")
@dataclass(frozen=True)
class HingeDivergence:
    """beta/2 max(KL - delta, 0)^2 with KL = token-mean of log pi_old - log pi.

    Source: DRPO, arXiv 2510.04474; Optimization-AI/DRPO.
    """

    beta: NonNegative[Number] = 1e3
    delta: NonNegative[Number] = 1e-4
    level: ClassVar[Level] = "batch"
    reads = ("logp", "logp_old")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        kl = token_mean(log_ratio(b, "now", of="old"), b)
        return float(self.beta) / 2 * (kl - float(self.delta)).relu().square(), {"kl_hinge": kl.detach()}


@register_part("terms")
@dataclass(frozen=True)
class Divergence:
    """coef * KL(pi || anchor), estimated per decision from d = log anchor - log pi:

    k1 = -d (unbiased), k2 = d^2 / 2, k3 = exp(d) - d - 1 (unbiased, >= 0). On samples of the anchor itself: proximal =
    r log r - r + 1 with r = exp(-d) (unbiased, >= 0); forward = d, for KL(anchor || pi).
    over: reduced by this mean instead of the method's.
    coef = 0 reads no anchor. renew: the batch before whose update the anchor becomes the policy as it is then.
    Source: GRPO, arXiv 2402.03300, eq. 4; the names: Schulman, "Approximating KL divergence".
    """

    kind: Literal["k1", "k2", "k3", "proximal", "forward"] = "k3"
    anchor: Literal["ref", "old", "prev", "ema"] = "ref"
    coef: NonNegative[Number] = 0.04
    renew: Count[int] | None = None
    over: Literal["token", "row", "sum", "constant"] | None = None
    level: ClassVar[Level] = "decision"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", f"logp_{self.anchor}") if float(self.coef) else ("logp",)

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {} if self.renew is None else {self.anchor: Refresh(at=self.renew)}

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        if not float(self.coef):
            return b.need("logp").new_zeros(()), {}
        kl = divergence(-log_ratio(b, self.anchor), self.kind)
        mean = reduce(kl, b) if self.over is None else average(kl, b, self.over)
        return float(self.coef) * mean, {f"kl_{self.anchor}": masked_mean(kl.detach(), b.mask)}
