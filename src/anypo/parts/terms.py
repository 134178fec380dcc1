"""Terms: further objectives beside the main one, reduced like it unless they say otherwise. Scalars to minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from anypo.parts._register import register
from anypo.parts.ratio import log_ratio
from anypo.parts.reduce import Mean
from anypo.parts.statistics import masked_mean, ratio
from anypo.stages import Level, Number, Reduce, Refresh
from anypo.types import Trajectories


@register("terms")
@dataclass(frozen=True)
class Entropy:
    """- coef * H: a bonus for the policy's entropy. Source: A3C, arXiv 1602.01783, sec. 4."""

    coef: Number = 0.01
    level: ClassVar[Level] = "decision"
    reads = ("entropy",)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.entropy is not None
        return -float(self.coef) * reduce(b.entropy, b), {}


@register("terms")
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
    coef: Number = 0.04
    renew: int | None = None
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
            assert b.logp is not None
            return b.logp.new_zeros(()), {}
        kl = divergence(-log_ratio(b, self.anchor), self.kind)
        mean = reduce(kl, b) if self.over is None else Mean(self.over)(kl, b)
        return float(self.coef) * mean, {f"kl_{self.anchor}": masked_mean(kl.detach(), b.valid)}


def divergence(d: Tensor, kind: str) -> Tensor:
    """The estimators as functions of d = log anchor - log pi."""
    if kind == "forward":
        return d
    if kind == "proximal":
        r = ratio(-d)
        return -r * d - r + 1
    if kind == "k1":
        return -d
    return d.square() / 2 if kind == "k2" else ratio(d) - d - 1
