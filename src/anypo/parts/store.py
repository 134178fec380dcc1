"""Store: between what was collected and what the learner sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from anypo.errors import RunError
from anypo.parts._register import register
from anypo.types import Trajectories


@register("store")
@dataclass(frozen=True)
class Fresh:
    """The learner sees exactly the rows just collected, once."""

    def open(self) -> OpenFresh:
        return OpenFresh()


@dataclass
class OpenFresh:
    rows: list[Trajectories] = field(default_factory=list)

    def add(self, rows: Trajectories) -> None:
        self.rows.append(rows)

    def draw(self, generator: torch.Generator) -> Trajectories:
        if not self.rows:
            raise RunError("the store is empty: nothing was collected before the update")
        batch, self.rows = Trajectories.cat(self.rows), []
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = []
