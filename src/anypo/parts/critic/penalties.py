"""Penalties on the values of a head of actions, beside its regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number, number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Positive, Range
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, View


@register_part("penalties")
@dataclass(frozen=True)
class Conservative:
    """alpha sum_i mean[temperature logsumexp_a (Q_i(s, a) / temperature) - Q_i(s, a_data)].

    The logsumexp runs over all choices, or (`draws` each) over uniform actions, the policy's at s and its at s', each minus its
    log-density. Source: CQL, arXiv 2006.04779, eq. 4 and appendix F.
    """

    alpha: NonNegative[Number] = 5.0
    draws: Annotated[int, Range(least=1, most=1000)] | None = 10
    temperature: Positive[float] = 1.0
    level: ClassVar[Level] = "decision"

    @property
    def proposals(self) -> dict[str, Draw]:
        if self.draws is None:
            return {}
        return {
            "uniform": Draw(how="uniform", count=self.draws),
            "here": Draw(count=self.draws),
            "next": Draw(at="next", count=self.draws),
        }

    def live(self, head: str) -> dict[str, View]:
        # the policy's actions for s' are evaluated at s, as in the reference implementation
        if self.draws is None:
            return {f"{head}_all": View(f"{head}_all")}
        return {f"{head}_at_{name}": View(head, draw=draw) for name, draw in self.proposals.items()}

    def views(self, head: str) -> dict[str, View]:
        return {f"{head}_logp_of_{name}": View("logp", at=draw.at, draw=draw) for name, draw in self.proposals.items()}

    def __call__(self, b: Trajectories, head: str) -> tuple[Tensor, dict[str, Tensor]]:
        q = b.need(head)
        if self.draws is None:
            values = b.need(f"{head}_all")
        else:
            gaps = [b.need(f"{head}_at_{n}") - b.need(f"{head}_logp_of_{n}").unsqueeze(-1) for n in self.proposals]
            values = torch.cat(gaps, 2)
        gap = self.temperature * (values / self.temperature).logsumexp(2) - q
        loss = token_mean(gap.sum(-1), b)
        return number(self.alpha) * loss, {"conservative_gap": masked_mean(gap.detach().mean(-1), b.mask)}


@register_part("penalties")
@dataclass(frozen=True)
class GradientPenalty:
    """coef sum_i mean max(|dQ_i/da (s, a)| - bound, 0)^2 at the recorded actions: only a slope above the bound costs.

    Source: Div99/XQL and hari-sikchi/DVL (`grad_pen`), which take the slope of the first member for both; WGAN-LP, arXiv 1709.08894.
    """

    coef: NonNegative[Number] = 1.0
    bound: NonNegative[float] = 1.0
    level: ClassVar[Level] = "decision"
    smooth: ClassVar[bool] = True

    def live(self, head: str) -> dict[str, View]:
        return {f"{head}_slope_action": View(f"{head}_slope_action")}

    def views(self, head: str) -> dict[str, View]:
        return {}

    def __call__(self, b: Trajectories, head: str) -> tuple[Tensor, dict[str, Tensor]]:
        slope = torch.linalg.vector_norm(b.need(f"{head}_slope_action"), dim=-1)
        loss = token_mean((slope - self.bound).relu().square().sum(-1), b)
        return number(self.coef) * loss, {f"{head}_slope": masked_mean(slope.detach().mean(-1), b.mask)}
