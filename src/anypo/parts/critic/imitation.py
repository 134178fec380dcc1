"""Q-functions learned from expert transitions without rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.targets import POLYAK
from anypo.parts.registry import register_part
from anypo.ranges import Members, NonNegative, Share
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, Network, Refresh, View


@register_part("critic")
@dataclass(frozen=True)
class MixtureMatching:
    """beta (mean_D Q(s, pi) - mean_E Q(s, a)) + (1/4) mean_mix (gamma V(s') - Q(s, a))^2, summed over the ensemble.

    E: transitions of the expert (`expert` [N, T] = 1), the others are S; in the mixture E has the share beta whatever its share
    of the batch; D: all states. Needs no reward. Source: ReCOIL, arXiv 2302.08560, chi2 case.
    """

    beta: NonNegative[float] = 0.5
    gamma: Share[float] = 0.99
    ensemble: Members = 2
    tau: Share[float] = POLYAK
    level: ClassVar[Level] = "batch"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"q": View("q"), "q_policy": View("q", draw=Draw())}
    views: ClassVar[dict[str, View]] = {"v_next": View("v", at="next")}
    reads = ("q", "q_policy", "v_next", "expert", "terminal")

    @property
    def networks(self) -> dict[str, Network]:
        return {"q": Network("action", self.ensemble)}

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=1, decay=1 - self.tau, per="update")}

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q, expert = b.need("q"), (b.need("expert") != 0) & b.valid
        other = ~expert & b.valid
        residual = (self.gamma * (1 - b.need("terminal")) * b.need("v_next")).detach().unsqueeze(-1) - q
        square = residual.square().sum(-1)
        of_expert = b.but(mask=expert)
        mix = self.beta * token_mean(square, of_expert) + (1 - self.beta) * token_mean(square, b.but(mask=other))
        gap = token_mean(b.need("q_policy").sum(-1), b) - token_mean(q.sum(-1), of_expert)
        loss = self.beta * gap + 0.25 * mix
        return loss, {"q_loss": loss.detach(), "q": masked_mean(q.detach().mean(-1), b.mask)}
