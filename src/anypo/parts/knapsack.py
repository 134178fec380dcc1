"""A rollout budget per start: where samples are likeliest to teach something."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from anypo.parts._register import register
from anypo.parts.knobs import Moving, register_knob
from anypo.parts.statistics import scored
from anypo.stages import Pool, Want
from anypo.types import Request, Trajectories


def value(n: int, p: float) -> float:
    """(1 - p^n - (1-p)^n) p (1-p)^2: chance of a nonzero gradient times the gain in success it brings."""
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def allocate(rates: Sequence[float], total: int, low: int = 2, high: int = 128) -> list[int]:
    """Samples n_i in [low, high] with sum n_i <= total that maximise sum_i value(n_i, p_i).

    value is concave in n, so spending one sample at a time where it adds most is exact. What is left when nothing adds
    value any more goes evenly to the starts that always failed. Source: Knapsack RL, arXiv 2509.25849.
    """
    counts = [low] * len(rates)
    gains = [(value(low, p) - value(low + 1, p), i) for i, p in enumerate(rates) if 0 < p < 1]
    heapq.heapify(gains)
    left = total - low * len(rates)
    while left > 0 and gains:
        _, i = heapq.heappop(gains)
        counts[i] += 1
        left -= 1
        if counts[i] < high:
            heapq.heappush(gains, (value(counts[i], rates[i]) - value(counts[i] + 1, rates[i]), i))
    while left > 0 and (hopeless := [i for i, p in enumerate(rates) if p == 0 and counts[i] < high]):
        for i in hopeless[:left]:
            counts[i] += 1
        left -= min(left, len(hopeless))
    return counts


@register_knob
@dataclass(unsafe_hash=True)
class SuccessRate(Moving):
    """Share of right rows (score > 0.5) of every start when it was last sampled; as a number, their mean."""

    rates: dict[int, float] = field(default_factory=dict, init=False, compare=False)
    every: ClassVar[Literal["batch", "update"]] = "batch"

    def __float__(self) -> float:
        return sum(self.rates.values()) / max(len(self.rates), 1)

    def __str__(self) -> str:
        return "success-rate"

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        if b.start is None:
            return
        seen: dict[int, list[bool]] = {}
        outcome = scored(b).score
        assert outcome is not None
        for start, score in zip(b.start.tolist(), outcome.tolist(), strict=True):
            if score == score:
                seen.setdefault(start, []).append(score > 0.5)
        self.rates |= {start: sum(right) / len(right) for start, right in seen.items()}


@register("collect")
@dataclass(frozen=True)
class KnapsackBudget:
    """One ask of requests x samples rows in all, dealt out by `allocate` over the starts' last success rates; a start that has
    not been seen yet gets `samples` rows. Source: Knapsack RL, arXiv 2509.25849.
    """

    requests: int | None = None
    samples: int | None = None
    low: int = 2
    high: int = 128
    history: SuccessRate = field(default_factory=SuccessRate)

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        requests = pool.draw(want.requests, want.samples, want.horizon)
        known = [i for i, r in enumerate(requests) if r.start in self.history.rates]
        if known and not pool.standing:
            rates = [self.history.rates[requests[i].start] for i in known]  # pyright: ignore[reportArgumentType]
            counts = allocate(rates, want.samples * len(known), min(self.low, want.samples), self.high)
            for i, samples in zip(known, counts, strict=True):
                requests[i] = replace(requests[i], samples=samples)
        return (yield requests)
