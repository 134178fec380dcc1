"""Likelihood or distance to demonstrated, preferred or recorded actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.log_ratio import row_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.pairs import ranked_pairs, row_weight
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Share
from anypo.stages import Level, Reduce
from anypo.types import Trajectories
from anypo.views import Draw, View, policy_action


@register_part("terms")
@dataclass(frozen=True)
class LikeBest:
    """coef * negative log-likelihood of the rows that are preferred in their group: the mean over these rows of the sum or the
    mean over their decisions, or (`token`) the mean over all their decisions. Source: RPO, arXiv 2405.16436.
    """

    coef: NonNegative[Number] = 1.0
    over: Literal["sum", "row", "token"] = "sum"
    level: ClassVar[Level] = "group"
    reads = ("logp", "group")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        best = torch.zeros_like(b.lengths, dtype=torch.bool)
        best[ranked_pairs(b)[0]] = True
        best = best & ~torch.zeros_like(best).index_fill(0, ranked_pairs(b)[1], True)
        logp = torch.where(b.valid, b.need("logp"), 0.0)
        length = b.get("length")
        if self.over == "token":
            size = b.lengths if length is None else length
            weighted = row_weight(b, logp[:, 0]) * logp.sum(1)
            nll = -torch.where(best, weighted, 0.0).sum() / torch.where(best, size, 0).sum().clamp(min=1)
        else:
            each = logp.sum(1) if self.over == "sum" else row_mean(b, logp)
            nll = -torch.where(best, each * row_weight(b, each), 0.0).sum() / best.sum().clamp(min=1)
        return float(self.coef) * nll, {"nll_best": nll.detach()}


@register_part("terms")
@dataclass(frozen=True)
class CloneAction:
    """coef * mean |pi(s) - a|^2 over decisions and dimensions, a the action in the data or (`nearest`) the action of the recorded
    pair nearest to (beta s, pi(s)). Source: TD3+BC, arXiv 2106.06860, eq. 3; nearest: PRDC, arXiv 2306.06569, eq. 6.
    """

    to: Literal["taken", "nearest"] = "taken"
    coef: NonNegative[Number] = 1.0
    level: ClassVar[Level] = "decision"
    live: ClassVar[dict[str, View]] = {"action_policy": View("action", draw=policy_action(False))}

    @property
    def views(self) -> dict[str, View]:
        return {"nearest": View("nearest", draw=Draw(how="mode"))} if self.to == "nearest" else {"taken": View("taken")}

    @property
    def reads(self) -> tuple[str, ...]:
        return ("action_policy", self.to)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        gap = (b.need("action_policy") - b.need(self.to)).square().mean(-1)
        loss = token_mean(gap, b)
        return float(self.coef) * loss, {"clone_gap": masked_mean(gap.detach(), b.mask)}


@register_part("terms")
@dataclass(frozen=True)
class CloneGoodAction:
    """coef * mean[g |pi(s) - abar|^2], abar the better one of the recorded action and the autoencoder's version ahat of pi(s), by
    A(x) = Q_1(s, x) - V(s); g = mask (1[A(ahat) >= 0] + 1[A(a) > 0]). Comparisons carry no gradient.

    through: the gradient runs through ahat too, as in the release. Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    mask: Share[float] = 0.5
    through: bool = False
    coef: NonNegative[Number] = 1.0
    level: ClassVar[Level] = "decision"
    draw: ClassVar[Draw] = policy_action(False)
    live: ClassVar[dict[str, View]] = {"action_policy": View("action", draw=draw), "vae_policy": View("vae", draw=draw)}
    views: ClassVar[dict[str, View]] = {
        "q_now": View("q"),
        "v_now": View("v"),
        "taken": View("taken"),
        "q_vae": View("q_vae", draw=Draw(how="mode")),
    }
    reads = (*live, *views)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        v, vae = b.need("v_now"), b.need("vae_policy")
        recorded, proposed = b.need("q_now")[..., 0] - v, b.need("q_vae")[..., 0] - v
        target = torch.where(
            (proposed >= recorded).unsqueeze(-1), vae if self.through else vae.detach(), b.need("taken")
        )
        gate = self.mask * ((proposed >= 0).to(v.dtype) + (recorded > 0).to(v.dtype))
        gap = (b.need("action_policy") - target).square().mean(-1)
        loss = token_mean(gate * gap, b)
        return float(self.coef) * loss, {
            "clone_gap": masked_mean(gap.detach(), b.mask),
            "gate": masked_mean(gate, b.mask),
        }
