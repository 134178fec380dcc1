"""Collect: which rows a batch consists of. Generators: yield requests, receive their finished rows, return the batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from anypo.parts._register import register
from anypo.parts.statistics import group_stats, index_groups, scored
from anypo.stages import Number, Pool, Want
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
class Explore:
    """Act and explore: uniform actions for the first `first` decisions, then with probability `random` (epsilon), and Gaussian
    noise of deviation `noise` on continuous actions in [-1, 1]. after: so many batches at first are learned from the data that
    are there already, with nothing collected (offline, then online).
    """

    requests: int | None = None
    samples: int | None = None
    first: int = 1000
    random: Number = 0.0
    noise: float = 0.0
    after: int = 0

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories | None]:
        if pool.batches <= self.after:
            return None
        chance = 1.0 if pool.decisions < self.first else float(self.random)
        asked = pool.draw(want.requests, want.samples, want.horizon)
        return (yield [replace(request, random=chance, noise=self.noise) for request in asked])


@register("collect")
@dataclass(frozen=True)
class FromData:
    """Nothing is collected: what is learned from is in the store."""

    requests: int | None = None
    samples: int | None = None
    offline = True

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories | None]:
        return None
        yield  # a generator that asks for nothing


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


@register("collect")
@dataclass(frozen=True)
class HintLadder:
    """Ask again, with a longer hint each time, for the starts whose samples all failed; the last rung keeps what it gets.

    rungs: shares of the reference solution that are shown. A row failed where its first outcome channel (its score where
    there are none) is not above 0. The hint is given, so log-probs and credit are those of the hinted start.
    The share shown stands in `hint` [N]. Source: GHPO, arXiv 2507.10628.
    """

    requests: int | None = None
    samples: int | None = None
    rungs: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        requests = pool.draw(want.requests, want.samples, want.horizon)
        kept: list[Trajectories] = []
        for rung in self.rungs:
            rows = yield [replace(request, hint=rung or None) for request in requests]
            outcome = scored(rows).score if rows.scores is None else rows.scores[:, 0]
            assert rows.group is not None and outcome is not None
            index, groups = index_groups(rows.group)
            solved = torch.zeros(groups, dtype=torch.bool, device=index.device)
            solved[index[outcome > 0]] = True
            rows = rows.put({"hint": torch.full_like(index, rung, dtype=torch.float32)})
            kept.append(rows if rung == self.rungs[-1] else rows.rows(solved[index]))
            requests = [request for request, done in zip(requests, solved.tolist(), strict=True) if not done]
            if not requests:
                break
        return Trajectories.cat([rows for rows in kept if rows.shape[0]])


@register("collect")
@dataclass(frozen=True)
class WithDemonstrations:
    """One ask, and demonstrations beside it: `apart` of them for starts drawn on their own, or, with None, one for every start
    asked, in the group of its samples. Source: HPT, arXiv 2509.04419; apart: CHORD, arXiv 2508.11408.
    """

    requests: int | None = None
    samples: int | None = None
    apart: int | None = None

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        requests = pool.draw(want.requests, want.samples, want.horizon)
        rows = yield requests
        assert rows.group is not None
        shown = requests if self.apart is None else pool.draw(self.apart, 1)
        taught = yield [Request(request.start, expert=True) for request in shown]
        if self.apart is None:
            taught = taught.but(group=rows.group.unique())
        own = torch.zeros_like(rows.group, dtype=torch.bool)
        return Trajectories.cat([rows.but(expert_mask=own), taught])


@register("collect")
@dataclass(frozen=True)
class Window:
    """At most `window` decisions per row and batch (half the horizon where left open); rows that are not finished then go on in
    the next batch, and new starts fill the rest. Rows hold all their decisions so far, `fresh` marks those just made, `done` the
    finished ones; an unfinished row has no outcome yet. Environments that stand go on anyway.
    Source: T-PPO, arXiv 2506.15050.
    """

    requests: int | None = None
    samples: int | None = None
    window: int | None = None

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        if pool.standing or want.horizon is None:
            return (yield pool.draw(want.requests, want.samples, want.horizon))
        size = self.window or max(1, want.horizon // 2)
        waiting, pool.unfinished = pool.unfinished, []
        going = [Request(int(row.start), 1, size, prefix=row) for row in waiting if row.start is not None]
        rows = yield [*going, *pool.draw(want.requests * want.samples - len(going), 1, size)]
        if rows.truncated is None:  # nothing is ever cut
            return rows
        open_ = rows.truncated & (rows.lengths < want.horizon)
        pool.unfinished = [
            Trajectories(
                mask=row.mask, logp_old=row.logp_old, start=row.start, trace={"completion": row.trace["completion"]}
            )
            for row in (rows.rows(open_.nonzero()[i]) for i in range(int(open_.sum())))
        ]
        waits = {name: torch.where(open_, 0.0, t) for name in ("score",) if (t := rows.get(name)) is not None}
        return rows.but(done=~open_, truncated=rows.truncated & ~open_, scores=None, budget=want.horizon, **waits)


def informative_rows(b: Trajectories) -> torch.Tensor:
    """[N] booleans: the outcomes of the row's group are not all equal."""
    outcome = scored(b).score
    assert outcome is not None
    return group_stats(outcome, b.group)[2] > 0
