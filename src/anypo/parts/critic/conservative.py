"""Conservative penalties on Q-functions."""

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


@register_part("critic")
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
    heads: ClassVar[tuple[str, ...]] = ()

    @property
    def proposals(self) -> dict[str, Draw]:
        if self.draws is None:
            return {}
        return {
            "uniform": Draw(how="uniform", count=self.draws),
            "here": Draw(count=self.draws),
            "next": Draw(at="next", count=self.draws),
        }

    @property
    def live(self) -> dict[str, View]:
        # the policy's actions for s' are evaluated at s, as in the reference implementation
        if self.draws is None:
            return {"q": View("q"), "q_all": View("q_all")}
        return {"q": View("q")} | {f"q_at_{name}": View("q", draw=draw) for name, draw in self.proposals.items()}

    @property
    def views(self) -> dict[str, View]:
        return {f"logp_of_{name}": View("logp", at=draw.at, draw=draw) for name, draw in self.proposals.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.live, *self.views)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q = b.need("q")
        if self.draws is None:
            values = b.need("q_all")
        else:
            values = torch.cat([b.need(f"q_at_{n}") - b.need(f"logp_of_{n}").unsqueeze(-1) for n in self.proposals], 2)
        gap = self.temperature * (values / self.temperature).logsumexp(2) - q
        loss = token_mean(gap.sum(-1), b)
        return number(self.alpha) * loss, {"conservative_gap": masked_mean(gap.detach().mean(-1), b.mask)}
