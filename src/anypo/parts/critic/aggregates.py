"""From the values of an ensemble's members, [..., member], to one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.ranges import Count, Finite


@register_part("aggregate")
@dataclass(frozen=True)
class EnsembleMin:
    """min_i Q_i. Source: TD3, arXiv 1802.09477, eq. 10."""

    def __call__(self, values: Float[Tensor, "*decision member"]) -> Float[Tensor, "*decision"]:
        return values.min(-1).values


@register_part("aggregate")
@dataclass(frozen=True)
class RandomSubset:
    """min_{i in M} Q_i, M `size` members at random, others at every tick of `clock`. Source: REDQ, arXiv 2101.05982, alg. 1."""

    size: Count[int] = 2
    clock: Finite[Number] = 0.0

    def __call__(self, values: Float[Tensor, "*decision member"]) -> Float[Tensor, "*decision"]:
        order = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(int(float(self.clock))))
        return values[..., order[: self.size].to(values.device)].min(-1).values
