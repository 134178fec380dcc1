"""A rollout budget per start, spent where samples are likeliest to be informative."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from anypo.parts.knobs.tracked import SuccessRate
from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count
from anypo.types import Request, Trajectories


def chance_times_gain(n: int, p: float) -> float:
    """(1 - p^n - (1-p)^n) p (1-p)^2: chance of a nonzero gradient times the gain in success it brings."""
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def allocate(rates: Sequence[float], total: int, low: int = 2, high: int = 128) -> list[int]:
    """Return samples n_i in [low, high] with sum n_i <= total that maximise sum_i value(n_i, p_i).

    value is concave in n, so spending one sample at a time where it adds most is exact. What is left when nothing adds
    value any more goes evenly to the starts that always failed. Source: Knapsack RL, arXiv 2509.25849.
    """
    counts = [low] * len(rates)
    gains = [(chance_times_gain(low, p) - chance_times_gain(low + 1, p), i) for i, p in enumerate(rates) if 0 < p < 1]
    heapq.heapify(gains)
    left = total - low * len(rates)
    while left > 0 and gains:
        _, i = heapq.heappop(gains)
        counts[i] += 1
        left -= 1
        if counts[i] < high:
            heapq.heappush(
                gains, (chance_times_gain(counts[i], rates[i]) - chance_times_gain(counts[i] + 1, rates[i]), i)
            )
    while left > 0 and (hopeless := [i for i, p in enumerate(rates) if p == 0 and counts[i] < high]):
        for i in hopeless[:left]:
            counts[i] += 1
        left -= min(left, len(hopeless))
    return counts


@register_part("collect")
@dataclass(frozen=True)
class KnapsackBudget:
    """One ask of requests x samples rows in all, dealt out by `allocate` over the starts' last success rates; a start that has
    not been seen yet gets `samples` rows. Source: Knapsack RL, arXiv 2509.25849.
    """

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    low: Count[int] = 2
    high: Count[int] = 128
    history: SuccessRate = field(default_factory=SuccessRate)

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories]:
        requests = pool.draw(want.requests, want.samples, want.horizon)
        known = [i for i, r in enumerate(requests) if r.start in self.history.rates]
        if known and not pool.continuing:
            rates = [self.history.rates[requests[i].start] for i in known]  # pyright: ignore[reportArgumentType]
            counts = allocate(rates, want.samples * len(known), min(self.low, want.samples), self.high)
            for i, samples in zip(known, counts, strict=True):
                requests[i] = replace(requests[i], samples=samples)
        return (yield requests)
