"""Adam and RMSProp."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from anypo.kernels.adamw import FusedAdamW
from anypo.parts.registry import register_part
from anypo.parts.step.gradient import Gradient
from anypo.ranges import Decay, NonNegative, Positive


@register_part("step")
@dataclass(frozen=True)
class Adam(Gradient):
    """Adam with decoupled weight decay; the policy's weights may have an L2 penalty in their gradient instead (`policy_penalty`).

    Source: arXiv 1412.6980, 1711.05101.
    """

    betas: tuple[Decay[float], Decay[float]] = (0.9, 0.999)
    eps: Positive[float] = 1e-8
    weight_decay: NonNegative[float] = 0.0
    policy_penalty: NonNegative[float] | None = None

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        groups = [self._penalised(group) for group in groups]
        fused = all(p.is_floating_point() for g in groups for p in g["params"])
        return FusedAdamW(groups, lr, self.betas, self.eps, self.weight_decay, fused=fused)

    def _penalised(self, group: dict[str, Any]) -> dict[str, Any]:
        if self.policy_penalty is None or group.get("name") != "policy":
            return group
        return {**group, "weight_decay": self.policy_penalty, "decoupled_weight_decay": False}


@register_part("step")
@dataclass(frozen=True)
class RMSProp(Gradient):
    """RMSProp. Source: Hinton, lecture 6e; as used by A3C, arXiv 1602.01783."""

    alpha: NonNegative[float] = 0.99
    eps: Positive[float] = 1e-5

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(list(groups), lr, self.alpha, self.eps)
