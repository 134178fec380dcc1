"""Stores of rows: on-policy batches and replayed groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from anypo.errors import RunError
from anypo.parts.ops.groups import index_groups
from anypo.parts.registry import register_part
from anypo.ranges import Count, Share
from anypo.types import Trajectories


@register_part("store")
@dataclass(frozen=True)
class Fresh:
    """The learner sees exactly the rows just collected, once. Source: REINFORCE, Williams 1992."""

    def open(self) -> OpenFresh:
        return OpenFresh()


@dataclass
class OpenFresh:
    """The rows collected since the last draw."""

    rows: list[Trajectories] = field(default_factory=list)

    def add(self, rows: Trajectories) -> None:
        self.rows.append(rows)

    def draws(self) -> int:
        return 1

    def draw(self, generator: torch.Generator) -> Trajectories:
        if not self.rows:
            raise RunError("the store is empty: nothing was collected before the update")
        batch, self.rows = Trajectories.cat(self.rows), []
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = []


@register_part("store")
@dataclass(frozen=True)
class Replay:
    """All fresh rows, and whole groups of the last `window` batches so that these are a share `share` of what is seen; their source
    is `replay`.

    Source: ReMix, arXiv 2507.06892 (Mix-PPG).
    """

    share: Share[float] = 0.4
    window: Count[int] = 2

    def open(self) -> OpenReplay:
        return OpenReplay(self)


@dataclass
class OpenReplay:
    """The rows collected since the last draw, and those of earlier batches."""

    recipe: Replay
    fresh: list[Trajectories] = field(default_factory=list)
    past: list[Trajectories] = field(default_factory=list)

    def add(self, rows: Trajectories) -> None:
        self.fresh.append(rows)

    def draws(self) -> int:
        return 1

    def draw(self, generator: torch.Generator) -> Trajectories:
        if not self.fresh:
            raise RunError("the store is empty: nothing was collected before the update")
        now, self.fresh = Trajectories.cat(self.fresh), []
        drawn = [now]
        if self.past:
            old = _apart(self.past)
            (index, groups), group = index_groups(old.need("group")), now.need("group")
            size = round(self.recipe.share / (1 - self.recipe.share) * index_groups(group)[1])
            chosen = torch.randperm(groups, generator=generator)[:size].to(index.device)
            old = old.rows(torch.isin(index, chosen))
            if old.shape[0]:
                source = torch.full_like(old.lengths, old.sources.index("replay"))
                drawn.append(old.but(group=index_groups(old.need("group"))[0] + group.max() + 1, source=source))
        self.past = [*self.past, now][-self.recipe.window :]
        return Trajectories.cat(drawn)

    def state_dict(self) -> dict[str, Any]:
        return {"past": [rows.to_dict() for rows in self.past]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fresh, self.past = [], [Trajectories.from_dict(rows) for rows in state["past"]]


def _apart(batches: list[Trajectories]) -> Trajectories:
    """Batches below each other, their group ids made distinct."""
    kept, offset = [], 0
    for rows in batches:
        group = index_groups(rows.need("group"))[0] + offset
        kept.append(rows.but(group=group))
        offset = int(group.max()) + 1
    return Trajectories.cat(kept)
