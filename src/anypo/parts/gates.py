"""Smooth and two-scale alternatives to clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.statistics import masked_mean, ratio
from anypo.parts.trust import advantage_at, share
from anypo.stages import Level, Number
from anypo.types import Trajectories


@register("trust")
@dataclass(frozen=True)
class TwoBranchClip:
    """s = w min(r A, clip(r) A) + (1 - w) min(q A, clip(q) A), r the token's ratio and q = exp(mean_t x) the row's.

    Each branch is clipped in its own box before they are mixed. w: `half`, or the token's entropy scaled to [0, 1] over the row
    (detached; 1/2 where the row's entropy is constant). Source: DHPO, arXiv 2601.05607, eq. 8 to 11.
    """

    low: Number = 0.2
    high: Number = 0.2
    row_low: Number = 3e-4
    row_high: Number = 4e-4
    weight: Literal["half", "entropy", "token", "row"] = "half"
    level: ClassVar[Level] = "row"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("advantage", "entropy") if self.weight == "entropy" else ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r, q = ratio(x), ratio(b.row_mean(x))
        token, cut = clipped(r, advantage_at(x, b), float(self.low), float(self.high))
        row, row_cut = clipped(q, advantage_at(q, b), float(self.row_low), float(self.row_high))
        w = self.mix(b, x)
        return w * token + (1 - w) * row.unsqueeze(1), {"clip_fraction": share(cut, b), "clip_rows": share(row_cut, b)}

    def mix(self, b: Trajectories, x: Tensor) -> Tensor:
        if self.weight != "entropy":
            return torch.full_like(x, {"half": 0.5, "token": 1.0, "row": 0.0}[self.weight])
        assert b.entropy is not None
        h = b.entropy.detach()
        low = torch.where(b.valid, h, torch.inf).amin(1, keepdim=True)
        span = torch.where(b.valid, h, -torch.inf).amax(1, keepdim=True) - low
        return torch.where(span > 0, (h - low) / torch.where(span > 0, span, 1.0), 0.5)


def clipped(r: Tensor, a: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1 - low, 1 + high) A), and where the clip acted."""
    bound = r.clamp(1 - low, 1 + high) * a
    return torch.minimum(r * a, bound), bound < r * a


@register("trust")
@dataclass(frozen=True)
class FiberGate:
    """s = G A, G_t = exp(g(log s+, up) - g(log s-, down)) f_t: the row's drift is gated as a whole, its tokens around it.

    log s+- = mean_t max(+-x_t, 0);  g(y, C) = y up to C, then back down to 0 with slope -T, then 0;
    log f_t = clip(x_t - l_t log s^{l_t}, +-eps) - clip(-l_t log s^{-l_t}, +-eps),  l_t = +1 where x_t >= 0 else -1.
    Source: Fibration Policy Optimization, as given in JoyAI-LLM Flash, arXiv 2604.03044, definition 3.1 and eq. 1 to 5.
    """

    up: Number = 0.15
    down: Number = 0.10
    eps: Number = 0.02
    level: ClassVar[Level] = "row"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        eps, sign = float(self.eps), torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        rise, fall = b.row_mean(x.relu()), b.row_mean((-x).relu())
        length = b.lengths.clamp(min=1).to(x.dtype)
        base = gate(rise, float(self.up), length) - gate(fall, float(self.down), length)
        mine = torch.where(sign > 0, rise.unsqueeze(1), fall.unsqueeze(1))
        other = torch.where(sign > 0, fall.unsqueeze(1), rise.unsqueeze(1))
        residual = (x - sign * mine).clamp(-eps, eps) - (-sign * other).clamp(-eps, eps)
        gated = ratio(base.unsqueeze(1) + residual)
        shut = (rise > float(self.up)) | (fall > float(self.down))
        return gated * advantage_at(x, b), {"gated_rows": share(shut, b)}


def gate(y: Float[Tensor, " row"], bound: float, length: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """y up to the bound, (T + 1) bound - T y up to (1 + 1/T) bound, 0 beyond; y >= 0."""
    back = (length + 1) * bound - length * y
    return torch.where(y <= bound, y, torch.where(y < (1 + 1 / length) * bound, back, 0.0))


@register("trust")
@dataclass(frozen=True)
class HazardModulated:
    """s = exp(psi - zeta) A with psi = c tanh(x / c) and the detached hazard

        zeta = (softplus(psi) / scale_up)^k_up + (softplus(-psi) / scale_down)^k_down.

    dF/dlogp = exp(psi - zeta) sech^2(x / c) A. At ratio 1 this is exp(-zeta(0)) = 0.265 of the plain gradient; `normalize`
    divides by it. Source: MHPO, arXiv 2603.16929.
    """

    c: Number = 1.5
    k_up: Number = 1.5
    scale_up: Number = 1.0
    k_down: Number = 2.0
    scale_down: Number = 0.8
    normalize: bool = False
    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def hazard(self, psi: Tensor) -> Tensor:
        up = torch.nn.functional.softplus(psi) / float(self.scale_up)
        down = torch.nn.functional.softplus(-psi) / float(self.scale_down)
        return up ** float(self.k_up) + down ** float(self.k_down)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        psi = float(self.c) * torch.tanh(x / float(self.c))
        zeta = self.hazard(psi.detach())
        if self.normalize:
            zeta = zeta - self.hazard(torch.zeros_like(psi))
        multiplier = (psi - zeta).exp()
        return multiplier * advantage_at(x, b), {"multiplier": masked_mean(multiplier.detach(), b.valid)}


@register("trust")
@dataclass(frozen=True)
class MaskedLikelihood:
    """s = M w A log pi, with M and w detached: which decisions may still learn, and how much each counts.

    mask: `one-side`, A > 0 and r <= 1 + high or A < 0 and r >= 1 - low; `two-side`, r in the box; `ring`, in the box or far
    outside it where the step leads back (A > 0, r <= 1 - ring_low; A < 0, r >= 1 + ring_high); `none`.
    weight: `none` (1), `ratio` (r), `exp` (e^{A/temp}). Source: REC, arXiv 2509.24203; Trinity-RFT.
    """

    mask: Literal["one-side", "two-side", "ring", "none"] = "one-side"
    weight: Literal["none", "ratio", "exp"] = "none"
    low: Number = 0.2
    high: Number = 0.2
    ring_low: Number = 0.6
    ring_high: Number = 2.0
    temp: Number = 1.0
    level: ClassVar[Level] = "decision"
    reads = ("logp", "advantage")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None and b.advantage is not None
        r, a = ratio(x.detach()), b.advantage.detach()
        allowed = self.allowed(r, a)
        w = {"none": torch.ones_like(r), "ratio": r, "exp": ratio(a / float(self.temp))}[self.weight]
        return torch.where(allowed, w, 0.0) * a * b.logp, {"clip_fraction": share(~allowed & (a != 0), b)}

    def allowed(self, r: Tensor, a: Tensor) -> Tensor:
        below, above = r <= 1 + float(self.high), r >= 1 - float(self.low)
        if self.mask == "none":
            return torch.ones_like(below)
        if self.mask == "one-side":
            return ((a > 0) & below) | ((a < 0) & above)
        far = ((a > 0) & (r <= 1 - float(self.ring_low))) | ((a < 0) & (r >= 1 + float(self.ring_high)))
        return (below & above) | (far & (self.mask == "ring"))


@register("trust")
@dataclass(frozen=True)
class VariancePenalty:
    """s = r A - coef (r - 1)^2; dF/dlogp = r (A - 2 coef (r - 1)): beyond r = 1 + A / (2 coef) a decision is pulled back.

    Reports `ratio_variance`, the mean of (r - 1)^2, which a dual knob may hold at a bound. Source: R2VPO, arXiv 2601.03320.
    """

    coef: Number = 0.04
    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r = ratio(x)
        square = (r - 1).square()
        valid = b.valid if x.ndim == 2 else b.lengths > 0
        variance = masked_mean(square.detach(), valid)
        return r * advantage_at(x, b) - float(self.coef) * square, {"ratio_variance": variance}
