"""Collect: ask once for starts and samples."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class Ask:
    """One ask: rows = requests x samples, `samples` of each start. What is left None, the task recommends."""

    requests: Count[int] | None = None
    samples: Count[int] | None = None

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        return (yield pool.draw(want.requests, want.samples, want.horizon))
