"""Gradients through the policy's own action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number, number
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Positive
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, View, policy_action


@register_part("trust")
@dataclass(frozen=True)
class Pathwise:
    """s = lam Q(s, a) - alpha log pi(a|s), a the policy's own action; the gradient runs through a, value networks are frozen.

    of: Q is the `min` or the `mean` of the ensemble, or its `first`. soft: a is sampled and its log-probability costs alpha;
    else a is the mode. scale: lam = scale / mean |Q|, a constant of the batch; without it lam = 1. coef: at 0 (by a knob)
    the policy is not updated. Source: SAC, arXiv 1812.05905, eq. 7; DDPG, arXiv 1509.02971, eq. 6; scale: TD3+BC, arXiv 2106.06860, eq. 5.
    """

    of: Literal["min", "mean", "first"] = "min"
    soft: bool = True
    alpha: NonNegative[Number] = 0.0
    scale: Positive[Number] | None = None
    coef: NonNegative[Number] = 1.0
    level: ClassVar[Level] = "batch"
    uses_ratio = False

    @property
    def policy(self) -> str:
        return "squashed" if self.soft else "deterministic"

    @property
    def live(self) -> dict[str, View]:
        draw = policy_action(self.soft)
        soft = {"logp_policy": View("logp", draw=draw)} if self.soft else {}
        return {"q_pi": View("q", draw=draw), **soft}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.live)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q = b.need("q_pi")
        q = q.min(-1).values if self.of == "min" else q.mean(-1) if self.of == "mean" else q[..., 0]
        s = q
        if self.scale is not None:
            s = number(self.scale) / masked_mean(q.detach().abs(), b.mask).clamp(min=1e-8) * q
        metrics = {"q_policy": masked_mean(q.detach(), b.mask)}
        if self.soft:
            logp = b.need("logp_policy")
            s = s - number(self.alpha) * logp
            metrics["logp_policy"] = masked_mean(logp.detach(), b.mask)
        return float(self.coef) * s, metrics


@register_part("trust")
@dataclass(frozen=True)
class BestExpert:
    """s = min_i Q_i(s, a_k*) - alpha log pi_k*(a_k*|s) - mean_k (w_k - 1[k = k*])^2, k* the expert whose own action is best.

    Only the winner learns; the gate's weights w become the frequency of winning.
    Source: PMOE, arXiv 2104.09122; quantumiracle/Popular-RL-Algorithms, pmoe_sac.py.
    """

    alpha: NonNegative[Number] = 0.0
    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "experts"
    uses_ratio = False
    draw: ClassVar[Draw] = Draw(how="each", live=True)
    live: ClassVar[dict[str, View]] = {
        "q_experts": View("q", draw=draw),
        "logp_experts": View("logp", draw=draw),
        "routing": View("routing"),
    }
    reads = tuple(live)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q, logp, gate = b.need("q_experts").min(-1).values, b.need("logp_experts"), b.need("routing")
        best = q.argmax(-1, keepdim=True)
        win = torch.zeros_like(gate).scatter(-1, best, 1.0)
        logp = logp.gather(-1, best).squeeze(-1)
        s = q.gather(-1, best).squeeze(-1) - number(self.alpha) * logp - (gate - win).square().mean(-1)
        busiest = torch.where(b.valid.unsqueeze(-1), gate, 0.0).sum((0, 1)) / b.valid.sum().clamp(min=1)
        return s, {"logp_policy": masked_mean(logp.detach(), b.mask), "busiest_expert": busiest.max().detach()}
