"""Score-function and importance-weighted surrogates without clipping of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.surrogate import advantage_at, share
from anypo.parts.registry import register_part
from anypo.ranges import Bound, Positive, Range
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("trust")
@dataclass(frozen=True)
class Likelihood:
    """s = A log pi: the score-function estimator, no ratio. Source: REINFORCE, Williams 1992, eq. 4."""

    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")
    uses_ratio = False

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return b.need("advantage").detach() * b.need("logp"), {}


@register_part("trust")
@dataclass(frozen=True)
class Unclipped:
    """s = r A: the importance-weighted advantage. dF/dlogp = r A."""

    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return importance_ratio(x) * advantage_at(x, b), {}


@register_part("trust")
@dataclass(frozen=True)
class SelfWeightedLikelihood:
    """s = phi log pi, with phi detached: 1, p (1 - p) or p, p = pi(decision); decisions likelier than `cutoff` have no gradient.

    Source: CHORD, arXiv 2508.11408; phi = 1, the plain likelihood: HPT, arXiv 2509.04419.
    """

    phi: Literal["one", "uncertain", "likely"] = "one"
    cutoff: Annotated[float, Range(above=0, most=1)] = 1.0
    level: ClassVar[Level] = "decision"
    reads = ("logp",)
    uses_ratio = False

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        logp = b.need("logp")
        p = logp.detach().clamp(max=0.0).exp()
        phi = {"one": torch.ones_like(p), "uncertain": p * (1 - p), "likely": p}[self.phi]
        logp = logp.clamp(max=math.log(self.cutoff)) if self.cutoff < 1 else logp
        return phi * logp, {}


@register_part("trust")
@dataclass(frozen=True)
class MaskedLikelihood:
    """s = M w A log pi, with M and w detached: which decisions may still learn, and how much each counts.

    mask: `one-side`, A > 0 and r <= 1 + high or A < 0 and r >= 1 - low; `two-side`, r in the box; `ring`, in the box or far
    outside it where the step leads back (A > 0, r <= 1 - ring_low; A < 0, r >= 1 + ring_high); `none`.
    weight: `none` (1), `ratio` (r), `exp` (e^{A/temp}). Source: REC, arXiv 2509.24203; Trinity-RFT.
    """

    mask: Literal["one-side", "two-side", "ring", "none"] = "one-side"
    weight: Literal["none", "ratio", "exp"] = "none"
    low: Bound[Number] = 0.2
    high: Bound[Number] = 0.2
    ring_low: Bound[Number] = 0.6
    ring_high: Bound[Number] = 2.0
    temp: Positive[Number] = 1.0
    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r, a = importance_ratio(x.detach()), b.need("advantage").detach()
        allowed = self.allowed(r, a)
        w = {"none": torch.ones_like(r), "ratio": r, "exp": importance_ratio(a / float(self.temp))}[self.weight]
        return torch.where(allowed, w, 0.0) * a * b.need("logp"), {"clip_fraction": share(~allowed & (a != 0), b)}

    def allowed(self, r: Tensor, a: Tensor) -> Tensor:
        below, above = r <= 1 + float(self.high), r >= 1 - float(self.low)
        if self.mask == "none":
            return torch.ones_like(below)
        if self.mask == "one-side":
            return ((a > 0) & below) | ((a < 0) & above)
        far = ((a > 0) & (r <= 1 - float(self.ring_low))) | ((a < 0) & (r >= 1 + float(self.ring_high)))
        return (below & above) | (far & (self.mask == "ring"))
