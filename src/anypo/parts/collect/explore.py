"""Collect with exploration noise."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count, NonNegative, Share
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class Explore:
    """Act and explore: uniform actions for the first `first` decisions, then with probability `random` (epsilon), and Gaussian
    noise of deviation `noise` on continuous actions in [-1, 1]. after: so many batches at first are learned from the data that
    are there already, with nothing collected (offline, then online).

    Source: epsilon-greedy, DQN, arXiv 1312.5602, alg. 1; Gaussian noise, TD3, arXiv 1802.09477, alg. 1.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    first: NonNegative[int] = 1000
    random: Share[Number] = 0.0
    noise: NonNegative[float] = 0.0
    after: NonNegative[int] = 0

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories | None]:
        if pool.batches <= self.after:
            return None
        chance = 1.0 if pool.decisions < self.first else float(self.random)
        asked = pool.draw(want.requests, want.samples, want.horizon)
        return (yield [replace(request, random=chance, noise=self.noise) for request in asked])
