"""The clipped surrogate and what trust parts share."""

from __future__ import annotations

import torch
from torch import Tensor

from anypo.parts.ops.masked import masked_mean
from anypo.types import Trajectories


def advantage_at(x: Tensor, b: Trajectories) -> Tensor:
    """Return the advantage at the level of x: as it is per decision, its mean over the row where x has one number per row."""
    a = b.need("advantage").detach()
    return a if x.ndim == 2 else b.row_mean(a)


def share(flag: Tensor, b: Trajectories) -> Tensor:
    """Share of decisions (or rows) for which a flag holds."""
    return masked_mean(flag.detach().to(torch.float32), b.mask if flag.ndim == 2 else None)


def clipped(r: Tensor, a: Tensor, low: float | Tensor, high: float | Tensor) -> tuple[Tensor, Tensor]:
    """s = min(r A, clip(r, low, high) A), and where the clip acted."""
    free, bound = r * a, r.clamp(low, high) * a  # pyright: ignore[reportCallIssue, reportArgumentType]
    return torch.minimum(free, bound), bound < free
