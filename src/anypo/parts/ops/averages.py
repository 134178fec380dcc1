"""Linear averages over the decisions of a batch: the mask enters the denominator, the weight does not."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts.ops.groups import group_sum, index_groups
from anypo.parts.ops.masked import masked_mean
from anypo.types import Trajectories

Over = Literal["token", "row", "sum", "constant", "group"]


def coefficients(b: Trajectories, over: Over, length: int | None = None) -> Float[Tensor, "row 1"]:
    """Return c_i of the average sum_{i,t} c_i m w s.

    Args:
        b: the batch; an empty row adds 0 and stays in the number of rows N.
        over: token: c = 1 / sum(m). row: c_i = 1 / (N |o_i|), the mean of row means. sum: c = 1 / N, the mean of row sums.
            constant: c = 1 / (N L). group: c_i = 1 / (M n_i |o_i|), the mean over M groups of the row means of their n_i rows.
        length: L in decisions; the batch's budget where it is None, else its width T.
    """
    if over == "token":
        return b.valid.sum().clamp(min=1).to(torch.float64).reciprocal().expand(b.shape[0], 1)
    lengths = b.lengths.unsqueeze(1).to(torch.float64)
    rows = max(len(lengths), 1)
    if over == "row":
        return 1 / (rows * lengths.clamp(min=1))
    if over == "group":
        index, groups = index_groups(b.need("group"))
        members = group_sum(torch.ones_like(lengths[:, 0]), index, groups)[index].unsqueeze(1)
        return 1 / (max(groups, 1) * members * lengths.clamp(min=1))
    if over == "sum":
        return torch.full_like(lengths, 1 / rows)
    return torch.full_like(lengths, 1 / (rows * (length or b.budget or b.shape[1])))


def weighted(s: Tensor, b: Trajectories) -> Float[Tensor, "row step"]:
    """s times the batch's weight; a number per row counts on each of its decisions."""
    s = s if s.ndim == 2 else s.unsqueeze(1)
    return s if b.weight is None else s * b.weight


def weighted_sum(s: Tensor, c: Float[Tensor, "row #step"], b: Trajectories) -> Float[Tensor, ""]:
    """Return sum_{i,t} c m w s over the decisions of a batch.

    Args:
        s: per decision [N, T] or row [N].
        c: coefficients.
        b: its mask is m, its weight w.
    """
    s = weighted(s, b)
    return torch.where(b.valid, s * c.to(s.dtype), 0.0).sum()


def token_mean(s: Tensor, b: Trajectories) -> Float[Tensor, ""]:
    """sum_{i,t} m w s / sum_{i,t} m."""
    return masked_mean(weighted(s, b), None) if b.mask is None else weighted_sum(s, coefficients(b, "token"), b)


def average(s: Tensor, b: Trajectories, over: Over, length: int | None = None) -> Float[Tensor, ""]:
    """Return sum_{i,t} c_i m w s.

    Args:
        s: per decision [N, T] or row [N].
        b: its mask is m, its weight w.
        over, length: of `coefficients`.
    """
    return token_mean(s, b) if over == "token" else weighted_sum(s, coefficients(b, over, length), b)
