"""Collect again until a batch is informative."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from anypo.errors import UsageError
from anypo.parts.ops.groups import index_groups
from anypo.parts.ops.outcomes import informative_rows, scored
from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count, Range, Share
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class DynamicSampling:
    """Ask again until the batch is full of groups whose outcomes differ (0 < #correct < G for a right/wrong verifier).

    At most `rounds` asks; a batch that is still short is used as it is, so a solved or hopeless task cannot hang the run.
    Source: DAPO, arXiv 2503.14476, eq. 11.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    rounds: Annotated[int, Range(least=1, most=100)] = 4

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        kept: list[Trajectories] = []
        missing = want.requests
        rows = Trajectories()
        for _ in range(self.rounds):
            rows = yield pool.draw(missing, want.samples, want.horizon)
            informative = rows.rows(informative_rows(rows))
            if informative.shape[0]:
                missing -= index_groups(informative.need("group"))[1]
                kept.append(informative)
            if missing <= 0:
                break
        return Trajectories.cat(kept) if kept else rows


@register_part("collect")
@dataclass(frozen=True)
class HintLadder:
    """Ask again, with a longer hint each time, for the starts whose samples all failed; the last rung keeps what it gets.

    rungs: shares of the reference solution that are shown. A row failed where its first outcome channel (its score where
    there are none) is not above 0. The hint is given, so log-probs and credit are those of the hinted start.
    `hint` [N] is the share shown. Source: GHPO, arXiv 2507.10628.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    rungs: tuple[Share[float], ...] = (0.0, 0.25, 0.5, 0.75)

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        if pool.continuing:
            raise UsageError(
                "hint-ladder asks again for starts that failed, and the task's requests continue its episodes instead"
            )
        requests = pool.draw(want.requests, want.samples, want.horizon)
        kept: list[Trajectories] = []
        for rung in self.rungs:
            rows = yield [replace(request, hint=rung or None) for request in requests]
            outcome = scored(rows).need("score") if rows.scores is None else rows.scores[:, 0]
            index, groups = index_groups(rows.need("group"))
            solved = torch.zeros(groups, dtype=torch.bool, device=index.device)
            solved[index[outcome > 0]] = True
            rows = rows.put({"hint": torch.full_like(index, rung, dtype=torch.float32)})
            kept.append(rows if rung == self.rungs[-1] else rows.rows(solved[index]))
            requests = [request for request, done in zip(requests, solved.tolist(), strict=True) if not done]
            if not requests:
                break
        return Trajectories.cat([rows for rows in kept if rows.shape[0]])
