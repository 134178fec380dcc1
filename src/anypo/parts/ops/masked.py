"""Masked statistics. Rules that hold library-wide: the standard deviation is the sample one (ddof=1),
computed in two passes; NaN marks a missing value and enters nothing; along a row masked decisions are skipped."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(x: Float[Tensor, "*any"], mask: Bool[Tensor, "*any"] | None) -> Float[Tensor, ""]:
    """Mean over the valid decisions (or rows), over all of them without a mask; 0 where there are none."""
    if mask is None:
        return x.mean() if x.numel() else x.sum()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(
    x: Float[Tensor, "row step"], mask: Bool[Tensor, "row step"] | None, ddof: int = 1
) -> Float[Tensor, "row step"]:
    """z = (x - mean) / (std + 1e-8) over all valid decisions; 0 under the mask, and where fewer than two are valid."""
    centred = x - masked_mean(x, mask)
    if mask is None:
        count = max(x.numel() - ddof, 1)
    else:
        centred, count = torch.where(mask, centred, 0.0), (mask.sum() - ddof).clamp(min=1)
    std = (centred.square().sum() / count).sqrt()
    return centred / (std + 1e-8)


def last_valid(mask: Bool[Tensor, "row step"]) -> Bool[Tensor, "row step"]:
    """Mark each row's last valid decision."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)


def next_valid(mask: Bool[Tensor, "row step"]) -> Int[Tensor, "row step"]:
    """For every slot the position of the next valid decision after it; T (one past the end) where there is none."""
    width = mask.shape[1]
    at = torch.where(mask, torch.arange(width, device=mask.device), width)
    following = torch.cat([at[:, 1:], at.new_full((len(at), 1), width)], 1)
    return following.flip(1).cummin(1).values.flip(1)
