"""Discounted sums along a row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def discounted(
    x: Float[Tensor, "row step"], valid: Bool[Tensor, "row step"], factor: float
) -> Float[Tensor, "row step"]:
    """y_t = x_t + factor y_{t+1} at valid decisions, y_t = x_t + y_{t+1} at the others, where x is 0; y is 0 beyond the row.

    Backwards in time, all rows at once, on columns that lie together in memory.
    """
    columns = x.T.clone(memory_format=torch.contiguous_format)
    factors = torch.where(valid, x.new_tensor(factor), x.new_ones(())).T.contiguous().unbind(0)
    out = columns.unbind(0)
    for t in reversed(range(len(out) - 1)):
        out[t].addcmul_(factors[t], out[t + 1])
    return columns.T
