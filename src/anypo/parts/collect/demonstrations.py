"""Collect demonstrations beside, or instead of, rollouts."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class WithDemonstrations:
    """One ask, and demonstrations beside it: `apart` of them for starts drawn on their own, or, with None, one for every start
    asked, in the group of its samples. Source: HPT, arXiv 2509.04419; apart: CHORD, arXiv 2508.11408.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    apart: Count[int] | None = None

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        requests = pool.draw(want.requests, want.samples, want.horizon)
        rows = yield requests
        group = rows.need("group")
        shown = requests if self.apart is None else pool.draw(self.apart, 1)
        taught = yield [Request(request.start, expert=True) for request in shown]
        if self.apart is None:
            taught = taught.but(group=group.unique())
        return Trajectories.cat([rows, taught])


@register_part("collect")
@dataclass(frozen=True)
class OnlyDemonstrations:
    """The task's demonstrations for the starts drawn, as the rows to learn from; the policy acts only when it is measured.

    Source: behavior cloning, Pomerleau 1991.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    rows: ClassVar[str] = "expert"

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        drawn = pool.draw(want.requests, want.samples, want.horizon)
        rows = yield [Request(r.start, r.samples, expert=True) for r in drawn]
        return rows.but(source=None, score=None, scores=None, logp_old=None)
