"""Collect a window of each rollout and continue it in the next batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class Window:
    """At most `window` decisions per row and batch (half the horizon where left open); rows that are not finished then go on in
    the next batch, and new starts fill the rest. Rows hold all their decisions so far, `fresh` marks those just made, `done` the
    finished ones; an unfinished row has no outcome yet. Environments that stand go on anyway.
    Source: T-PPO, arXiv 2506.15050.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    window: Count[int] | None = None

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        if pool.continuing or want.horizon is None:
            return (yield pool.draw(want.requests, want.samples, want.horizon))
        size = self.window or max(1, want.horizon // 2)
        waiting, pool.unfinished = pool.unfinished, []
        going = [Request(int(row.start), 1, size, prefix=row) for row in waiting if row.start is not None]
        rows = yield [*going, *pool.draw(want.requests * want.samples - len(going), 1, size)]
        if rows.truncated is None:  # nothing is ever cut
            return rows
        unfinished = rows.truncated & (rows.lengths < want.horizon)
        pool.unfinished = [
            Trajectories(
                mask=row.mask, logp_old=row.logp_old, start=row.start, trace={"completion": row.trace["completion"]}
            )
            for row in (rows.rows(unfinished.nonzero()[i]) for i in range(int(unfinished.sum())))
        ]
        no_outcome = {name: torch.where(unfinished, 0.0, t) for name in ("score",) if (t := rows.get(name)) is not None}
        return rows.but(
            done=~unfinished, truncated=rows.truncated & ~unfinished, scores=None, budget=want.horizon, **no_outcome
        )
