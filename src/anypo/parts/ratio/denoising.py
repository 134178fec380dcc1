"""Log-ratios of denoising chains and of matching losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.log_ratio import log_ratio
from anypo.parts.ops.segments import positive_scale, segment_sum, segments, squared_gap
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("ratio")
@dataclass(frozen=True)
class ChainRatio:
    """x = clip(l, -limit, limit) - clip(l_old, -limit, limit), one for all decisions of a segment, with
    l = (log p(x_0) + sum_k log p(x_{k+1} | x_k)) / (K + 1) of its K decisions; log p(x_0), `logp_noise`, is given at the first.

    Source: ReinFlow, arXiv 2505.22094, and its code.
    """

    limit: NonNegative[Number] = 1.0
    level: ClassVar[Level] = "segment"
    policy: ClassVar[str] = "flow"
    policy_options: ClassVar[dict[str, Any]] = {"noise": "learned"}
    reads = ("logp", "logp_old", "logp_noise")
    views: ClassVar[dict[str, View]] = {"logp_noise": View("logp_noise")}

    def __call__(self, b: Trajectories) -> Tensor:
        (of, _), valid, limit = segments(b), b.valid, float(self.limit)
        logp = b.need("logp")
        noise = b.get("logp_noise")
        terms = segment_sum(torch.ones_like(logp), of, valid) + 1
        now, old = (segment_sum(x + noise, of, valid) / terms for x in (logp, b.need("logp_old")))
        x = now.clamp(-limit, limit) - old.clamp(-limit, limit)
        return torch.where(valid, x.gather(1, of), 0.0)


@register_part("ratio")
@dataclass(frozen=True)
class NormalisedRatio:
    """x = s (log pi - log pi_old + |m - m_old|^2 / (2 s^2)) for a Gaussian step of mean m and standard deviation s, |.|^2 the mean
    over components, as in log pi: what is left, m - m_old times the noise, is centred and does not depend on s.

    Source: GRPO-Guard, arXiv 2510.22319.
    """

    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "flow"
    reads = ("logp", "logp_old", "step_mean", "step_mean_old", "step_std")
    live: ClassVar[dict[str, View]] = {"step_mean": View("step_mean")}
    views: ClassVar[dict[str, View]] = {"step_mean_old": View("step_mean"), "step_std": View("step_std")}

    def __call__(self, b: Trajectories) -> Tensor:
        s = positive_scale(b, "step_std")
        return torch.where(b.valid, s * log_ratio(b) + squared_gap(b, "step_mean", "old") / (2 * s), 0.0)


@register_part("ratio")
@dataclass(frozen=True)
class MatchingRatio:
    """x = l - l_old with l = -g(L), L the flow-matching loss of the action at the decision's own draw (time, noise), used in place
    of the log-probability. l_old is the same with the weights the update began with.

    per: `draw`, or the mean over the draws of an action (`segment`). limit: |x| at most, before and after that mean.
    weighting: g(L) = L (`uniform`) or t ((L + 1e-10)^power - 1e-10^power) / power (`ghuber`), t the share of noise in the draw.
    Source: FPO, arXiv 2507.21053; weighting: AWM, arXiv 2509.25050.
    """

    per: Literal["draw", "segment"] = "segment"
    limit: NonNegative[Number] | None = 3.0
    weighting: Literal["uniform", "ghuber"] = "uniform"
    power: NonNegative[float] = 0.25
    policy: ClassVar[str] = "flow"
    live: ClassVar[dict[str, View]] = {"logp": View("cfm")}

    @property
    def level(self) -> Level:
        return "decision" if self.per == "draw" else "segment"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "logp_old") if self.weighting == "uniform" else ("logp", "logp_old", "noise_share")

    @property
    def views(self) -> dict[str, View]:
        views = {"logp_old": View("cfm")}
        return views if self.weighting == "uniform" else {**views, "noise_share": View("noise_share")}

    def pseudo(self, logp: Float[Tensor, "row step"], b: Trajectories) -> Float[Tensor, "row step"]:
        if self.weighting == "uniform":
            return logp
        power = (1e-10 - logp.clamp(max=0.0)).pow(self.power) - 1e-10**self.power
        return -b.get("noise_share") * power / self.power

    def __call__(self, b: Trajectories) -> Tensor:
        valid, limit = b.valid, math.inf if self.limit is None else float(self.limit)
        x = torch.where(valid, self.pseudo(b.need("logp"), b) - self.pseudo(b.need("logp_old"), b), 0.0).clamp(
            -limit, limit
        )
        if self.per == "draw":
            return x
        of, _ = segments(b)
        mean = segment_sum(x, of, valid) / segment_sum(torch.ones_like(x), of, valid).clamp(min=1)
        return torch.where(valid, mean.clamp(-limit, limit).gather(1, of), 0.0)
