"""Heads: value functions with networks of their own, made of one piece for each choice that papers differ in.

y = backup(aggregate over the ensemble of the value at the next action), L = mean of regress(value, y) + penalties.

Fields of a head `q`: q [N, T, E] of the decisions taken under an ensemble of E, or [N, T] of states; reward [N, T]; terminal
[N, T], 1 where the episode terminated (truncation is not termination). Targets are detached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.critic.aggregates import EnsembleMin
from anypo.parts.critic.backups import OneStep
from anypo.parts.critic.next_actions import PolicySample, TakenAction
from anypo.parts.critic.regressions import Expectile, Squared
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.targets import POLYAK
from anypo.parts.registry import describe, register_part
from anypo.ranges import Count, Members, Named, Share
from anypo.stages import LEVELS, Level, declared
from anypo.types import Trajectories
from anypo.views import Network, Refresh, View


@dataclass(frozen=True)
class Head:
    """regress(value, y) + penalties, y = backup(aggregate_i Qbar_i at the next action); without a backup y is that value itself.

    head: its name, that of its network and its metrics. norm: layer normalization in its network.
    """

    head: Named[str] = "q"
    next: Any = PolicySample()
    backup: Any = OneStep()
    aggregate: Any = EnsembleMin()
    regress: Any = Squared()
    penalties: tuple[Any, ...] = ()
    norm: bool = False
    of: ClassVar[Literal["action", "state"]] = "action"
    heads: ClassVar[tuple[str, ...]] = ()
    pieces: ClassVar[tuple[str, ...]] = ("next", "backup", "aggregate", "regress", "penalties")

    def __post_init__(self) -> None:
        for kind in ("next", "aggregate", "regress"):
            if getattr(self, kind) is None:
                raise UsageError(
                    f"the head {self.head!r} needs a part of the kind {kind!r}; only the backup may be none"
                )
        if self.regress.spread and self.members != 2:
            raise UsageError(f"the head {self.head!r}: {describe(self.regress)} is for an ensemble of 2")
        self.views  # noqa: B018  # refuses pieces that do not fit each other

    @property
    def label(self) -> str:
        return self.head

    @property
    def level(self) -> Level:
        return max((piece.level for piece in (self.regress, *self.penalties)), key=LEVELS.index)

    @property
    def members(self) -> int:
        """How many networks the ensemble has."""
        return 1

    @property
    def networks(self) -> dict[str, Network]:
        smooth = any(declared(penalty, "smooth") for penalty in self.penalties)
        return {self.head: Network(self.of, self.members, self.regress.spread, self.norm, smooth)}

    @cached_property
    def live(self) -> dict[str, View]:
        views = {self.head: View(self.head)} | (
            {f"{self.head}_std": View(f"{self.head}_std")} if self.regress.spread else {}
        )
        for penalty in self.penalties:
            views |= penalty.live(self.head)
        return views

    @cached_property
    def views(self) -> dict[str, View]:
        views = self.next.views(self.head) | self.regress.views(self.head, self.next)
        if self.backup is not None:
            views |= self.backup.views(self.head, self.next)
        for penalty in self.penalties:
            views |= penalty.views(self.head)
        return views

    @cached_property
    def reads(self) -> tuple[str, ...]:
        return (*self.live, *(("reward", "terminal") if self.backup is not None else ()), *self.views)

    def after(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """Return the value at the next action, one of the ensemble's."""
        return self.next(b, self.head, self.aggregate)

    def back_up(self, b: Trajectories, after: Float[Tensor, "row step"]) -> Float[Tensor, "row step"]:
        """Return y of a value at the next action, detached."""
        return after.detach() if self.backup is None else self.backup(b, self.head, after)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        value = b.need(self.head)
        loss, metrics = self.regress.loss(self, b)
        metrics = {f"{self.head}_loss": loss.detach(), self.head: _mean_value(value, b), **metrics}
        for penalty in self.penalties:
            more, of_penalty = penalty(b, self.head)
            loss, metrics = loss + more, {**metrics, **of_penalty}
        return loss, metrics


def _mean_value(value: Tensor, b: Trajectories) -> Float[Tensor, ""]:
    """Return the mean over decisions, and over members where there are."""
    value = value.detach()
    return masked_mean(value if value.ndim == 2 else value.mean(-1), b.mask)


@register_part("critic")
@dataclass(frozen=True)
class ActionValue(Head):
    """Q_i(s, a), an ensemble: sum_i mean regress(Q_i, y) + penalties, y = r + gamma (1 - d) V(s') of the target networks.

    The anchor `target` follows by `tau` after every `every`-th update. Defaults: the critic of SAC without its entropy bonus.
    Source: SAC, arXiv 1812.05905, eq. 5; TD3, arXiv 1802.09477, alg. 1; IQL, arXiv 2110.06169, eq. 6.
    """

    ensemble: Members = 2
    tau: Share[float] = POLYAK
    every: Count[int] = 1

    @property
    def members(self) -> int:
        return self.ensemble

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=self.every, decay=1 - self.tau, per="update")}


@register_part("critic")
@dataclass(frozen=True)
class StateValue(Head):
    """V(s): mean regress(V, y), y = min_i Qbar_i(s, a) of the recorded action: V becomes a soft maximum of Q over the actions in the
    data alone, or with a backup y = r + gamma (1 - d) V'(s'). Source: IQL, arXiv 2110.06169, eq. 5.
    """

    head: Named[str] = "v"
    next: Any = TakenAction()
    backup: Any = None
    regress: Any = Expectile()
    of: ClassVar[Literal["action", "state"]] = "state"
