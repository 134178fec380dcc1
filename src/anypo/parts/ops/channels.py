"""Reward channels and their normalization."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts.ops.groups import group_stats
from anypo.parts.ops.outcomes import scored
from anypo.types import Trajectories


def channels(b: Trajectories) -> Float[Tensor, "row channel"]:
    """Return the outcome channels; a score alone is a single one."""
    if b.scores is not None:
        return b.scores
    return scored(b).need("score").unsqueeze(1)


def z_score(x: Float[Tensor, " row"], group: Tensor | None, eps: float) -> Float[Tensor, " row"]:
    """z = (x - mean) / (std + eps) over the group, 0 where it has no variance; one group where `group` is None."""
    _, mean, std = group_stats(x, group)
    return torch.where((std > 0) & ~x.isnan(), (x - mean) / (std + eps), 0.0)
