"""Smooth and two-scale alternatives to clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.surrogate import advantage_at, share
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Positive
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("trust")
@dataclass(frozen=True)
class FiberGate:
    """s = G A, G_t = exp(g(log s+, up) - g(log s-, down)) f_t: the row's drift is gated as a whole, its tokens around it.

    log s+- = mean_t max(+-x_t, 0);  g(y, C) = y up to C, then back down to 0 with slope -T, then 0;
    log f_t = clip(x_t - l_t log s^{l_t}, +-eps) - clip(-l_t log s^{-l_t}, +-eps),  l_t = +1 where x_t >= 0 else -1.
    Source: Fibration Policy Optimization, as given in JoyAI-LLM Flash, arXiv 2604.03044, definition 3.1 and eq. 1 to 5.
    """

    up: NonNegative[Number] = 0.15
    down: NonNegative[Number] = 0.10
    eps: Positive[Number] = 0.02
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
        gated = importance_ratio(base.unsqueeze(1) + residual)
        shut = (rise > float(self.up)) | (fall > float(self.down))
        return gated * advantage_at(x, b), {"gated_rows": share(shut, b)}


def gate(y: Float[Tensor, " row"], bound: float, length: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """y up to the bound, (T + 1) bound - T y up to (1 + 1/T) bound, 0 beyond; y >= 0."""
    back = (length + 1) * bound - length * y
    return torch.where(y <= bound, y, torch.where(y < (1 + 1 / length) * bound, back, 0.0))


@register_part("trust")
@dataclass(frozen=True)
class HazardModulated:
    """s = exp(psi - zeta) A with psi = c tanh(x / c) and the detached hazard

        zeta = (softplus(psi) / scale_up)^k_up + (softplus(-psi) / scale_down)^k_down.

    dF/dlogp = exp(psi - zeta) sech^2(x / c) A. At ratio 1 this is exp(-zeta(0)) = 0.265 of the plain gradient; `normalize`
    divides by it. Source: MHPO, arXiv 2603.16929.
    """

    c: NonNegative[Number] = 1.5
    k_up: NonNegative[Number] = 1.5
    scale_up: Positive[Number] = 1.0
    k_down: NonNegative[Number] = 2.0
    scale_down: Positive[Number] = 0.8
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
        return multiplier * advantage_at(x, b), {"multiplier": masked_mean(multiplier.detach(), b.mask)}


@register_part("trust")
@dataclass(frozen=True)
class VariancePenalty:
    """s = r A - coef (r - 1)^2; dF/dlogp = r (A - 2 coef (r - 1)): beyond r = 1 + A / (2 coef) a decision is pulled back.

    Reports `ratio_variance`, the mean of (r - 1)^2, which a dual knob may hold at a bound. Source: R2VPO, arXiv 2601.03320.
    """

    coef: NonNegative[Number] = 0.04
    level: ClassVar[Level] = "decision"
    reads = ("advantage",)

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        r = importance_ratio(x)
        square = (r - 1).square()
        mask = b.mask if x.ndim == 2 else b.lengths > 0
        variance = masked_mean(square.detach(), mask)
        return r * advantage_at(x, b) - float(self.coef) * square, {"ratio_variance": variance}
