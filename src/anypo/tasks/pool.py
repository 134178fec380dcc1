"""The pool of starts: every start once per epoch in a seeded order; the position survives checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anypo.errors import UsageError
from anypo.types import Request, Trajectories


@dataclass
class StartPool:
    """Draws starts 0..size-1 shuffled per epoch; counts upwards without end where `size` is None.

    continuing: requests continue current episodes instead of naming a start. rank, world: this process draws
    every world-th start, so that several processes share one order. unfinished: rows (one each) to go on with.
    decisions: how many were collected so far. batches: number of the present batch, from 1. numbered: requests numbered so far.
    """

    size: int | None
    seed: int
    continuing: bool = False
    rank: int = 0
    world: int = 1
    position: int = 0
    unfinished: list[Trajectories] = field(default_factory=list)
    decisions: int = 0
    batches: int = 0
    numbered: int = 0
    _order: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.size == 0:
            raise UsageError("the task has no training starts")

    def draw(self, requests: int, samples: int, horizon: int | None = None) -> list[Request]:
        if self.continuing:
            return [Request(None, 1, horizon)]
        return [Request(self._next(), samples, horizon) for _ in range(requests)]

    def number(self, requests: list[Request]) -> list[Request]:
        """Give every request the next number of the run."""
        first, self.numbered = self.numbered, self.numbered + len(requests)
        return [replace(r, key=(first + i) * self.world + self.rank) for i, r in enumerate(requests)]

    def _next(self) -> int:
        index = self.position * self.world + self.rank
        self.position += 1
        if self.size is None:
            return index
        epoch, at = divmod(index, self.size)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size))
        return int(self._order[1][at])

    def state_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.unfinished]
        return {
            "position": self.position,
            "size": self.size,
            "seed": self.seed,
            "unfinished": rows,
            "decisions": self.decisions,
            "numbered": self.numbered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["size"] != self.size:
            raise UsageError(
                f"the checkpoint's task had {state['size']} starts, this one has {self.size}: the data changed"
            )
        self.position, self.decisions, self.numbered = state["position"], state["decisions"], state["numbered"]
        self.unfinished = [Trajectories.from_dict(row) for row in state["unfinished"]]
