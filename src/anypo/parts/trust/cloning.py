"""Likelihood of given actions: behavior cloning, weighted or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import Bound
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("trust")
@dataclass(frozen=True)
class Matching:
    """s = -L, the matching loss of the row's action at the decision's draw: behaviour cloning, whatever the action was worth.

    loss: `denoising`, the squared error of the noise; `cfm`, of the velocity.
    Source: Diffusion Policy, arXiv 2303.04137; flow matching: arXiv 2210.02747.
    """

    loss: Literal["denoising", "cfm"] = "denoising"
    level: ClassVar[Level] = "decision"
    reads = ("logp",)
    uses_ratio = False

    @property
    def live(self) -> dict[str, View]:
        return {"logp": View(self.loss)}

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return b.need("logp"), {}


@register_part("trust")
@dataclass(frozen=True)
class WeightedBC:
    """s = w log pi(a|s), w = min(exp(advantage), cap), constant; w = 1 without `weighted`: likelihood of the actions in the data.

    Source: BC; weighted: AWR, arXiv 1910.00177, eq. 9; the cap as in IQL, arXiv 2110.06169.
    """

    weighted: bool = False
    cap: Bound[float] = 100.0
    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "gaussian"
    uses_ratio = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "advantage") if self.weighted else ("logp",)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        logp = b.need("logp")
        metrics = {"logp_data": masked_mean(logp.detach(), b.mask)}
        if not self.weighted:
            return logp, metrics
        w = b.need("advantage").detach().exp().clamp(max=self.cap)
        return w * logp, {**metrics, "data_weight": masked_mean(w, b.mask)}


@register_part("trust")
@dataclass(frozen=True)
class NoPolicyLoss:
    """s = 0: the policy is greedy with respect to its Q-network and has nothing of its own to learn. Source: DQN."""

    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "greedy"
    silent: ClassVar[bool] = True
    uses_ratio = False
    reads = ("reward",)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros_like(b.need("reward")), {}
