"""Distributional Q-functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number, number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.targets import POLYAK, backup
from anypo.parts.registry import register_part
from anypo.ranges import Count, Finite, NonNegative, Positive, Share
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, Network, Refresh, View


@register_part("critic")
@dataclass(frozen=True)
class GaussianTD:
    """Q_i as a Gaussian return N(q_i, std_i^2): omega_i mean[(q_i - y_q)^2 / (2 (std_i^2 + eps)) + the std's own likelihood],

    whose gradient is -(y_q - q_i) / (std_i^2 + eps) in q_i and -((y_z - q_i)^2 - std_i^2) / (std_i^3 + eps) in std_i. j = argmin
    q_i' of the target; y_q = r + gamma (1 - d) (q_j' - alpha log pi'), y_z the same with z_j' ~ N(q_j', std_j'^2) (cut at 3
    deviations), then within 3 m_i of q_i; omega_i = m_i^2. a' ~ the target policy, which follows after every `every`-th update.
    m_i = (1 - rate) mean_i + rate mean(std_i); the batch's own mean where `mean1`, `mean2` are not given, or NaN as before the first.
    Source: DSAC-T, arXiv 2310.05858; the scale m^2 as in Jingliang-Duan/DSAC-v2.
    """

    alpha: NonNegative[Number] = 0.0
    mean1: Finite[Number] | None = None
    mean2: Finite[Number] | None = None
    rate: Share[float] = 0.005
    gamma: Share[float] = 0.99
    eps: Positive[float] = 0.1
    tau: Share[float] = POLYAK
    every: Count[int] = 1
    substitute: bool = True
    level: ClassVar[Level] = "batch"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"q": Network("action", 2, spread=True)}
    live: ClassVar[dict[str, View]] = {"q": View("q"), "q_std": View("q_std")}
    draw: ClassVar[Draw] = Draw("target", "next")
    views: ClassVar[dict[str, View]] = {
        "q_next": View("q", "target", at="next", draw=draw),
        "q_next_std": View("q_std", "target", at="next", draw=draw),
        "logp_next": View("logp", "target", at="next", draw=draw),
        "luck": View("luck"),
    }
    reads = ("q", "q_std", "reward", "terminal", *views)

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=self.every, decay=1 - self.tau, per="update")}

    def targets(self, b: Trajectories) -> tuple[Float[Tensor, "row step"], Float[Tensor, "row step"]]:
        """(y_q, y_z) before the latter is bounded."""
        q_next, std_next = b.need("q_next"), b.need("q_next_std")
        worst = q_next.argmin(-1, keepdim=True)
        mean, std = q_next.gather(-1, worst).squeeze(-1), std_next.gather(-1, worst).squeeze(-1)
        bonus = number(self.alpha) * b.need("logp_next")
        sampled = mean + b.need("luck").clamp(-3, 3) * std
        y_z = backup(b, sampled - bonus, self.gamma)
        return (backup(b, mean - bonus, self.gamma) if self.substitute else y_z), y_z

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        y_q, y_z = self.targets(b)
        q, std = b.need("q"), b.need("q_std")
        now, width = q.detach(), std.detach()
        batch = torch.stack([masked_mean(width[..., k], b.mask) for k in (0, 1)])
        means = [math.nan if mean is None else number(mean) for mean in (self.mean1, self.mean2)]
        before = torch.stack([torch.as_tensor(mean, dtype=q.dtype) for mean in means])
        m = torch.where(before.isnan(), batch, (1 - self.rate) * before + self.rate * batch)
        near = now + torch.minimum(torch.maximum(y_z.unsqueeze(-1) - now, -3 * m), 3 * m)
        slope_q = (now - y_q.unsqueeze(-1)) / (width.square() + self.eps)
        slope_std = (width.square() - (near - now).square()) / (width.pow(3) + self.eps)
        loss = token_mean((m.square() * (slope_q * q + slope_std * std)).sum(-1), b)
        metrics = {"q": masked_mean(now.mean(-1), b.mask), "q_std1": m[0], "q_std2": m[1]}
        return loss, {"q_loss": masked_mean((now - y_q.unsqueeze(-1)).square().mean(-1), b.mask), **metrics}
