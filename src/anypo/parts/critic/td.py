"""Temporal-difference learning of Q-functions.

Fields: q [N, T, E] of the decisions taken under an ensemble of E; reward [N, T]; terminal [N, T], 1 where the episode
terminated (truncation is not termination). Targets are detached. Every part returns a scalar to minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number, number
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.targets import POLYAK, backup, member_subset, regress
from anypo.parts.registry import register_part
from anypo.ranges import Count, Finite, Members, NonNegative, Positive, Share
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, Network, Refresh, View


@register_part("critic")
@dataclass(frozen=True)
class TD:
    """sum_i mean (Q_i - y)^2 / 2,  y = r + gamma (1 - d) V(s').

    next: V(s') = `policy`: min_i Qbar_i(s', a') - alpha log pi(a'|s'), a' ~ pi; `target`: min_i Qbar_i(s', a'), a' the target
    policy's own action plus clip(N(0, noise^2), +-clip); `value`: the network v at s'; `max`: max_a' Qbar(s', a'); `double`:
    Qbar(s', argmax_a' Q(s', a')). Qbar: the anchor `target`, which follows by `tau` after every `every`-th update. subset:
    the min runs over so many members, drawn anew at every tick of `clock`. huber: linear beyond this error.
    Source: SAC, arXiv 1812.05905, eq. 5; TD3, arXiv 1802.09477, alg. 1; IQL, arXiv 2110.06169, eq. 6; Double DQN, arXiv
    1509.06461, eq. 4; REDQ, arXiv 2101.05982.
    """

    next: Literal["policy", "target", "value", "max", "double"] = "policy"
    gamma: Share[float] = 0.99
    ensemble: Members = 2
    alpha: NonNegative[Number] = 0.0
    noise: NonNegative[float] = 0.0
    clip: NonNegative[float] = 0.0
    norm: bool = False
    huber: Positive[float] | None = None
    subset: Count[int] | None = None
    clock: Finite[Number] = 0.0
    tau: Share[float] = POLYAK
    every: Count[int] = 1
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"q": View("q")}

    @property
    def soft(self) -> bool:
        return self.next == "policy" and self.alpha != 0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("q", "reward", "terminal", *self.views)

    @property
    def networks(self) -> dict[str, Network]:
        return {"q": Network("action", self.ensemble, norm=self.norm)}

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=self.every, decay=1 - self.tau, per="update")}

    @property
    def views(self) -> dict[str, View]:
        if self.next == "value":
            return {"v_next": View("v", at="next")}
        if self.next in ("max", "double"):
            now = {"q_choices": View("q_all", at="next")} if self.next == "double" else {}
            return {"q_next_all": View("q_all", of="target", at="next"), **now}
        if self.next == "target":
            draw = Draw("target", "next", "mode", noise=self.noise, clip=self.clip)
            return {"q_next": View("q", "target", at="next", draw=draw)}
        draw = Draw(at="next")
        soft = {"logp_next": View("logp", at="next", draw=draw)} if self.soft else {}
        return {"q_next": View("q", "target", at="next", draw=draw), **soft}

    def after(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """V(s')."""
        if self.next == "value":
            return b.need("v_next")
        if self.next in ("max", "double"):
            values = b.need("q_next_all").min(-1).values
            if self.next == "max":
                return values.max(-1).values
            best = b.need("q_choices").mean(-1).argmax(-1, keepdim=True)
            return values.gather(-1, best).squeeze(-1)
        worst = member_subset(b.need("q_next"), self.subset, self.clock).min(-1).values
        return worst - number(self.alpha) * b.need("logp_next") if self.soft else worst

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        y, q = backup(b, self.after(b), self.gamma), b.need("q")
        loss = regress(q - y.unsqueeze(-1), b, self.huber)
        return loss, {"q_loss": loss.detach(), "q": masked_mean(q.detach().mean(-1), b.mask)}
