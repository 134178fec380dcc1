"""Statistics over groups of rows. All rows enter group statistics, masked ones too; a group of one or without variance has standard
deviation 0; NaN marks a missing value and enters nothing."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.types import Trajectories


def index_groups(group: Int[Tensor, " row"]) -> tuple[Int[Tensor, " row"], int]:
    """Group ids renumbered 0..G-1 in ascending order, and G."""
    ids, inverse = torch.unique(group, return_inverse=True)
    return inverse, len(ids)


def group_sum(x: Float[Tensor, " row"], index: Int[Tensor, " row"], groups: int) -> Float[Tensor, " group"]:
    """y_g = sum of x_i over the rows with index_i = g."""
    return x.new_zeros(groups).index_add_(0, index, x)


def group_stats(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"] | None
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """(count, mean, std) of x over each row's group, spread back to the rows; one group when `group` is None.

    std is exactly 0 for a group of one and for a group whose values are all equal.
    """
    if group is None:
        index, groups = torch.zeros(len(x), dtype=torch.long, device=x.device), 1
    else:
        index, groups = index_groups(group)
    known = ~x.isnan()
    value = torch.where(known, x, 0.0)
    count = group_sum(known.to(x.dtype), index, groups)
    mean = group_sum(value, index, groups) / count.clamp(min=1)
    deviation = torch.where(known, value - mean[index], 0.0)
    std = (group_sum(deviation.square(), index, groups) / (count - 1).clamp(min=1)).sqrt()
    low = x.new_full((groups,), math.inf).scatter_reduce_(0, index, torch.where(known, x, math.inf), "amin")
    high = x.new_full((groups,), -math.inf).scatter_reduce_(0, index, torch.where(known, x, -math.inf), "amax")
    std = torch.where(high > low, std, 0.0)
    return count[index], mean[index], std[index]


def group_median(x: Float[Tensor, " row"], group: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Median of x over each row's group, the mean of the two middle ones for an even count; NaN enters nothing."""
    index, groups = index_groups(group)
    known = (~x.isnan()).to(x.dtype)
    order = torch.where(x.isnan(), math.inf, x).argsort(stable=True)
    order = order[index[order].argsort(stable=True)]
    size = torch.zeros(groups, dtype=torch.long, device=x.device).index_add_(0, index, torch.ones_like(index))
    first = size.cumsum(0) - size
    count = group_sum(known, index, groups).long()
    last = len(x) - 1
    low = x[order[(first + (count - 1).clamp(min=0) // 2).clamp(max=last)]]
    high = x[order[(first + count // 2).clamp(max=last)]]
    return torch.where(count > 0, (low + high) / 2, 0.0)[index]


def bundles(b: Trajectories, bundle: int) -> list[Int[Tensor, "paper prompt"]]:
    """Row indices of every paper: `bundle` groups in ascending id share one list; its paper j holds the j-th row (in batch
    order) of each of them. As many papers as the smallest group has rows."""
    group = b.need("group")
    known = (~b.need("score").isnan()).nonzero()[:, 0]
    members = [known[group[known] == g] for g in group[known].unique()]
    chunks = [members[i : i + bundle] for i in range(0, len(members), bundle)]
    return [torch.stack([rows[: min(map(len, chunk))] for rows in chunk], 1) for chunk in chunks]
