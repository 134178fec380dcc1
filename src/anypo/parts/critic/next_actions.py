"""Which action's value a head looks ahead to. `views` are the fields it needs, a call gives V(s')."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts.registry import register_part
from anypo.ranges import Named, NonNegative
from anypo.types import Trajectories
from anypo.views import Draw, View

Aggregate = Callable[[Float[Tensor, "*decision member"]], Float[Tensor, "*decision"]]


@register_part("next")
@dataclass(frozen=True)
class PolicySample:
    """V(s') = Qbar(s', a'), a' ~ pi(.|s') of the present policy, or of the `target`'s. Source: SAC, arXiv 1801.01290, eq. 3."""

    of: Literal["now", "target"] = "now"

    @property
    def draw(self) -> Draw:
        return Draw(self.of, "next")

    def views(self, head: str) -> dict[str, View]:
        return {f"{head}_next": View(head, "target", at="next", draw=self.draw)}

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        return aggregate(b.need(f"{head}_next"))


@register_part("next")
@dataclass(frozen=True)
class TargetAction:
    """V(s') = Qbar(s', a'), a' the target policy's own action plus clip(N(0, noise^2), +-clip).

    by: the networks that evaluate it: the `target`'s, or `both`, the present ones too. head: theirs, where it is another head.
    Source: DDPG, arXiv 1509.02971, eq. 5; with noise TD3, arXiv 1802.09477, eq. 14-15.
    """

    noise: NonNegative[float] = 0.0
    clip: NonNegative[float] = 0.0
    by: Literal["target", "both"] = "target"
    head: Named[str] | None = None

    @property
    def draw(self) -> Draw:
        return Draw("target", "next", "mode", noise=self.noise, clip=self.clip)

    def views(self, head: str) -> dict[str, View]:
        q, name = self.head or head, self._field(head)
        views = {name: View(q, "target", at="next", draw=self.draw)}
        return views | ({f"{name}_now": View(q, at="next", draw=self.draw)} if self.by == "both" else {})

    def _field(self, head: str) -> str:
        return f"{head}_next" if self.head in (None, head) else f"{head}_next_{self.head}"

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        name = self._field(head)
        if self.by == "target":
            return aggregate(b.need(name))
        return aggregate(torch.cat([b.need(name), b.need(f"{name}_now")], -1))


@register_part("next")
@dataclass(frozen=True)
class GreedyAction:
    """V(s') = max_a' Qbar(s', a') over all choices. Source: DQN, Mnih et al., Nature 518, 2015."""

    def views(self, head: str) -> dict[str, View]:
        return {f"{head}_next_all": View(f"{head}_all", of="target", at="next")}

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        return aggregate(b.need(f"{head}_next_all")).max(-1).values


@register_part("next")
@dataclass(frozen=True)
class DoubleGreedyAction(GreedyAction):
    """V(s') = Qbar(s', argmax_a' Q(s', a')): the present network chooses. Source: Double DQN, arXiv 1509.06461, eq. 4."""

    def views(self, head: str) -> dict[str, View]:
        return super().views(head) | {f"{head}_choices": View(f"{head}_all", at="next")}

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        best = b.need(f"{head}_choices").mean(-1).argmax(-1, keepdim=True)
        return aggregate(b.need(f"{head}_next_all")).gather(-1, best).squeeze(-1)


@register_part("next")
@dataclass(frozen=True)
class NextState:
    """V(s') of a head of states, which needs no action. Source: IQL, arXiv 2110.06169, eq. 6."""

    head: Named[str] = "v"

    def views(self, head: str) -> dict[str, View]:
        return {f"{self.head}_next": View(self.head, at="next")}

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        return b.need(f"{self.head}_next")


@register_part("next")
@dataclass(frozen=True)
class TakenAction:
    """Qbar(s, a) of a head of actions at the recorded decision itself. Source: IQL, arXiv 2110.06169, eq. 5."""

    head: Named[str] = "q"

    def views(self, head: str) -> dict[str, View]:
        return {f"{self.head}_taken": View(self.head, "target")}

    def __call__(self, b: Trajectories, head: str, aggregate: Aggregate) -> Float[Tensor, "row step"]:
        return aggregate(b.need(f"{self.head}_taken"))
