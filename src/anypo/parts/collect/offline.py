"""Collect nothing: offline data."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from anypo.parts.registry import register_part
from anypo.protocols import BatchSpec, Pool
from anypo.ranges import Count
from anypo.types import Request, Trajectories


@register_part("collect")
@dataclass(frozen=True)
class FromData:
    """Collect nothing: the data are in the store. standardize: the method's policy centres and scales observations by them
    (`--policy.normalize`). Source: offline reinforcement learning, arXiv 2005.01643."""

    requests: Count[int] | None = None
    samples: Count[int] | None = None
    standardize: bool = False
    offline = True

    @property
    def policy_options(self) -> dict[str, Any]:
        return {"normalize": True} if self.standardize else {}

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories | None]:
        return None
        yield  # a generator that asks for nothing
