"""Statistics the parts share. Rules that hold library-wide: the standard deviation is the sample one (ddof=1), computed in
two passes; all rows enter group statistics, masked ones too; a group of one or without variance has standard deviation 0;
NaN marks a missing value and enters nothing; along a row masked decisions are skipped."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.errors import MissingField
from anypo.types import Trajectories, whole


def ratio(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """exp(x), with x limited only where its square would overflow: +-40 in float32, +-322 in float64.

    The slope beyond the limit is that at the limit, not 0: a penalty that has become huge still pulls the right way.
    """
    limit = math.log(torch.finfo(x.dtype).max) / 2.2
    if not x.requires_grad:
        return x.clamp(-limit, limit).exp()
    return (x + (x.clamp(-limit, limit) - x).detach()).exp()


def index_groups(group: Int[Tensor, " row"]) -> tuple[Int[Tensor, " row"], int]:
    """Group ids renumbered 0..G-1 in ascending order, and G."""
    ids, inverse = torch.unique(group, return_inverse=True)
    return inverse, len(ids)


def group_sum(x: Float[Tensor, " row"], index: Int[Tensor, " row"], groups: int) -> Float[Tensor, " group"]:
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


def masked_mean(x: Float[Tensor, "*any"], mask: Bool[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Mean over the valid decisions (or rows); 0 where there are none."""
    if whole(mask) and x.shape == mask.shape and x.is_floating_point():
        return x.mean()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(x: Float[Tensor, "row step"], mask: Bool[Tensor, "row step"], ddof: int = 1) -> Float[Tensor, "row step"]:
    """(x - mean) / (std + 1e-8) over all valid decisions; 0 under the mask, and where fewer than two are valid."""
    count = mask.sum()
    centred = torch.where(mask, x - masked_mean(x, mask), 0.0)
    std = (centred.square().sum() / (count - ddof).clamp(min=1)).sqrt()
    return centred / (std + 1e-8)


def last_valid(mask: Bool[Tensor, "row step"]) -> Bool[Tensor, "row step"]:
    """True at each row's last valid decision."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)


def next_valid(mask: Bool[Tensor, "row step"]) -> Int[Tensor, "row step"]:
    """For every slot the position of the next valid decision after it; T (one past the end) where there is none."""
    width = mask.shape[1]
    at = torch.where(mask, torch.arange(width, device=mask.device), width)
    following = torch.cat([at[:, 1:], at.new_full((len(at), 1), width)], 1)
    return following.flip(1).cummin(1).values.flip(1)


def scored(b: Trajectories, weights: tuple[float, ...] | None = None) -> Trajectories:
    """b with one outcome per row: its score, else the weighted sum of its channels, else the sum of its rewards.

    A missing channel (NaN) is left out of the sum, it is not zero; a row without any outcome loses its mask, unless it is
    a demonstration.
    """
    if b.scores is not None and (b.score is None or weights is not None):
        scale = b.scores.new_tensor(weights if weights is not None else [1.0] * b.scores.shape[1])
        known = ~b.scores.isnan()
        score = torch.where(known, b.scores * scale, 0.0).sum(1)
        score = torch.where(known.any(1), score, torch.nan)
    elif b.score is not None:
        score = b.score
    elif b.reward is not None:
        score = torch.where(b.valid, b.reward, 0.0).sum(1)
    else:
        raise MissingField("score")
    if (expert := b.get("expert_mask")) is None:
        return b.but(score=score, mask=b.valid & ~score.isnan().unsqueeze(1))
    score = torch.where(expert != 0, torch.nan, score)
    return b.but(score=score, mask=b.valid & (~score.isnan() | (expert != 0)).unsqueeze(1))


def rewarded(b: Trajectories) -> Trajectories:
    """b with a reward per decision: its own, else the outcome on each row's last valid decision."""
    if b.reward is not None:
        return b
    b = scored(b)
    assert b.score is not None
    return b.but(reward=torch.where(last_valid(b.valid), b.score.unsqueeze(1), 0.0))


def bootstrap_of(b: Trajectories, like: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """Value of the state after each row: 0 where it ended in a terminal state, which all do unless the batch says otherwise."""
    if b.bootstrap is None:
        if b.done is not None and not bool((b.done != 0).all()):
            raise MissingField("bootstrap")
        return like.new_zeros(len(like))
    return b.bootstrap if b.done is None else torch.where(b.done != 0, 0.0, b.bootstrap)
