"""How a policy learns from value functions: through the action, by weighted likelihood, or by imitating chosen actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.reduce import Mean
from anypo.parts.statistics import masked_mean
from anypo.parts.values import field
from anypo.stages import Draw, Level, Number, Reduce, View, number
from anypo.types import Trajectories


@register("trust")
@dataclass(frozen=True)
class Pathwise:
    """s = lam Q(s, a) - alpha log pi(a|s), a the policy's own action; the gradient runs through a, value networks stand still.

    of: Q is the `min` or the `mean` of the ensemble, or its `first`. soft: a is sampled and its log-probability costs alpha;
    else a is the mode. scale: lam = scale / mean |Q|, a constant of the batch; without it lam = 1. coef: at 0 (a knob's turn)
    the policy rests. Source: SAC, arXiv 1812.05905, eq. 7; DDPG, arXiv 1509.02971, eq. 6; scale: TD3+BC, arXiv 2106.06860, eq. 5.
    """

    of: Literal["min", "mean", "first"] = "min"
    soft: bool = True
    alpha: Number = 0.0
    scale: Number | None = None
    coef: Number = 1.0
    level: ClassVar[Level] = "batch"
    uses_ratio = False

    @property
    def policy(self) -> str:
        return "squashed" if self.soft else "deterministic"

    @property
    def live(self) -> dict[str, View]:
        draw = own_action(self.soft)
        soft = {"logp_policy": View("logp", draw=draw)} if self.soft else {}
        return {"q_pi": View("q", draw=draw), **soft}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.live)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q = field(b, "q_pi")
        q = q.min(-1).values if self.of == "min" else q.mean(-1) if self.of == "mean" else q[..., 0]
        s = q
        if self.scale is not None:
            s = number(self.scale) / masked_mean(q.detach().abs(), b.valid).clamp(min=1e-8) * q
        told = {"q_policy": masked_mean(q.detach(), b.valid)}
        if self.soft:
            logp = field(b, "logp_policy")
            s = s - number(self.alpha) * logp
            told["logp_policy"] = masked_mean(logp.detach(), b.valid)
        return float(self.coef) * s, told


def own_action(soft: bool) -> Draw:
    return Draw(live=True) if soft else Draw(how="mode", live=True)


@register("trust")
@dataclass(frozen=True)
class BestExpert:
    """s = min_i Q_i(s, a_k*) - alpha log pi_k*(a_k*|s) - mean_k (w_k - 1[k = k*])^2, k* the expert whose own action is best.

    Only the winner learns; the gate's weights w become the frequency of winning.
    Source: PMOE, arXiv 2104.09122; quantumiracle/Popular-RL-Algorithms, pmoe_sac.py.
    """

    alpha: Number = 0.0
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
        q, logp, gate = field(b, "q_experts").min(-1).values, field(b, "logp_experts"), field(b, "routing")
        best = q.argmax(-1, keepdim=True)
        win = torch.zeros_like(gate).scatter(-1, best, 1.0)
        logp = logp.gather(-1, best).squeeze(-1)
        s = q.gather(-1, best).squeeze(-1) - number(self.alpha) * logp - (gate - win).square().mean(-1)
        busiest = torch.where(b.valid.unsqueeze(-1), gate, 0.0).sum((0, 1)) / b.valid.sum().clamp(min=1)
        return s, {"logp_policy": masked_mean(logp.detach(), b.valid), "busiest_expert": busiest.max().detach()}


@register("trust")
@dataclass(frozen=True)
class Clone:
    """s = w log pi(a|s), w = min(exp(advantage), cap), constant; w = 1 without `weighted`: likelihood of the actions in the data.

    Source: BC; weighted: AWR, arXiv 1910.00177, eq. 9; the cap as in IQL, arXiv 2110.06169.
    """

    weighted: bool = False
    cap: float = 100.0
    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "gaussian"
    uses_ratio = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "advantage") if self.weighted else ("logp",)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        logp = field(b, "logp")
        told = {"logp_data": masked_mean(logp.detach(), b.valid)}
        if not self.weighted:
            return logp, told
        w = field(b, "advantage").detach().exp().clamp(max=self.cap)
        return w * logp, {**told, "data_weight": masked_mean(w, b.valid)}


@register("trust")
@dataclass(frozen=True)
class Follow:
    """s = 0: the policy is greedy with respect to its Q-network and has nothing of its own to learn. Source: DQN."""

    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "greedy"
    silent: ClassVar[bool] = True
    uses_ratio = False
    reads = ("reward",)

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros_like(field(b, "reward")), {}


@register("credit")
@dataclass(frozen=True)
class Advantage:
    """A = beta (min_i Q_i(s, a) - V(s)), V(s) the network v, or (`drawn`) min_i Q_i at the policy's own sampled action.

    Q is the target's for v, as in IQL, arXiv 2110.06169, eq. 7; the present one otherwise, AWAC, arXiv 2006.09359, eq. 13.
    """

    beta: Number = 3.0
    drawn: bool = False

    @property
    def views(self) -> dict[str, View]:
        if self.drawn:
            return {"q_now": View("q"), "q_drawn": View("q", draw=Draw())}
        return {"q_taken": View("q", "target"), "v_now": View("v")}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.views)

    def __call__(self, b: Trajectories) -> Trajectories:
        if self.drawn:
            gap = field(b, "q_now").min(-1).values - field(b, "q_drawn").min(-1).values
        else:
            gap = field(b, "q_taken").min(-1).values - field(b, "v_now")
        return b.but(advantage=number(self.beta) * gap)


@register("terms")
@dataclass(frozen=True)
class CloneAction:
    """coef * mean |pi(s) - a|^2 over decisions and dimensions, a the action in the data or (`nearest`) the action of the recorded
    pair nearest to (beta s, pi(s)). Source: TD3+BC, arXiv 2106.06860, eq. 3; nearest: PRDC, arXiv 2306.06569, eq. 6.
    """

    to: Literal["taken", "nearest"] = "taken"
    coef: Number = 1.0
    level: ClassVar[Level] = "decision"
    live: ClassVar[dict[str, View]] = {"action_policy": View("action", draw=own_action(False))}

    @property
    def views(self) -> dict[str, View]:
        return {"nearest": View("nearest", draw=Draw(how="mode"))} if self.to == "nearest" else {"taken": View("taken")}

    @property
    def reads(self) -> tuple[str, ...]:
        return ("action_policy", self.to)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        gap = (field(b, "action_policy") - field(b, self.to)).square().mean(-1)
        loss = Mean("token")(gap, b)
        return float(self.coef) * loss, {"clone_gap": masked_mean(gap.detach(), b.valid)}


@register("terms")
@dataclass(frozen=True)
class CloneGoodAction:
    """coef * mean[g |pi(s) - abar|^2], abar the better one of the recorded action and the autoencoder's version ahat of pi(s), by
    A(x) = Q_1(s, x) - V(s); g = mask (1[A(ahat) >= 0] + 1[A(a) > 0]). Comparisons carry no gradient.

    through: the gradient runs through ahat too, as in the release. Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    mask: float = 0.5
    through: bool = False
    coef: Number = 1.0
    level: ClassVar[Level] = "decision"
    draw: ClassVar[Draw] = own_action(False)
    live: ClassVar[dict[str, View]] = {"action_policy": View("action", draw=draw), "vae_policy": View("vae", draw=draw)}
    views: ClassVar[dict[str, View]] = {
        "q_now": View("q"),
        "v_now": View("v"),
        "taken": View("taken"),
        "q_vae": View("q_vae", draw=Draw(how="mode")),
    }
    reads = (*live, *views)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        v, vae = field(b, "v_now"), field(b, "vae_policy")
        recorded, proposed = field(b, "q_now")[..., 0] - v, field(b, "q_vae")[..., 0] - v
        target = torch.where(
            (proposed >= recorded).unsqueeze(-1), vae if self.through else vae.detach(), field(b, "taken")
        )
        gate = self.mask * ((proposed >= 0).to(v.dtype) + (recorded > 0).to(v.dtype))
        gap = (field(b, "action_policy") - target).square().mean(-1)
        loss = Mean("token")(gate * gap, b)
        return float(self.coef) * loss, {
            "clone_gap": masked_mean(gap.detach(), b.valid),
            "gate": masked_mean(gate, b.valid),
        }
