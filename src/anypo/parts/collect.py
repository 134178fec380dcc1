"""Collect: which rows a batch consists of. Generators: yield requests, receive their finished rows, return the batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from anypo.parts._register import register
from anypo.parts.statistics import group_stats, index_groups, scored
from anypo.stages import Pool, Want
from anypo.types import Request, Trajectories


@register("collect")
@dataclass(frozen=True)
class Ask:
    """One ask: `requests` starts with `samples` rows each. What is left None, the task recommends."""

    requests: int | None = None
    samples: int | None = None

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        return (yield pool.draw(want.requests, want.samples, want.horizon))


@register("collect")
@dataclass(frozen=True)
class DynamicSampling:
    """Ask again until the batch is full of groups whose outcomes differ (0 < #correct < G for a right/wrong verifier).

    At most `rounds` asks; a batch that is still short is used as it is, so a solved or hopeless task cannot hang the run.
    Source: DAPO, arXiv 2503.14476, eq. 11.
    """

    requests: int | None = None
    samples: int | None = None
    rounds: int = 4

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        kept: list[Trajectories] = []
        missing = want.requests
        rows = None
        for _ in range(self.rounds):
            rows = yield pool.draw(missing, want.samples, want.horizon)
            informative = rows.rows(informative_rows(rows))
            if informative.shape[0]:
                assert informative.group is not None
                missing -= index_groups(informative.group)[1]
                kept.append(informative)
            if missing <= 0:
                break
        assert rows is not None
        return Trajectories.cat(kept) if kept else rows


def informative_rows(b: Trajectories) -> torch.Tensor:
    """[N] booleans: the outcomes of the row's group are not all equal."""
    outcome = scored(b).score
    assert outcome is not None
    return group_stats(outcome, b.group)[2] > 0
