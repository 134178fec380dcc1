"""Outcomes of rows: scores, rewards, bootstrap values."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypo.errors import MissingField
from anypo.parts.ops.groups import group_stats
from anypo.parts.ops.masked import last_valid
from anypo.types import Trajectories


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
    return b.but(reward=torch.where(last_valid(b.valid), b.need("score").unsqueeze(1), 0.0))


def head_field(field: str, head: str) -> str:
    """Return the name of a head's field: `returns` of the head `value`, `returns.NAME` of the head NAME."""
    return field if head == "value" else f"{field}.{head}"


def bootstrap_of(b: Trajectories, like: Float[Tensor, "row step"], head: str = "value") -> Float[Tensor, " row"]:
    """Return a head's value of the state after each row: 0 where it ended in a terminal state, which all do unless the batch says
    otherwise.

    Args:
        b: the batch.
        like: values, for their type.
        head: name of the head.
    """
    bootstrap = b.get(head_field("bootstrap", head))
    if bootstrap is None:
        if b.done is not None and not bool((b.done != 0).all()):
            raise MissingField(head_field("bootstrap", head))
        return like.new_zeros(len(like))
    return bootstrap if b.done is None else torch.where(b.done != 0, 0.0, bootstrap)


def channel_reward(b: Trajectories, channel: str | None) -> Float[Tensor, "row step"]:
    """Return the rewards of the channel `reward.NAME`; None: the reward itself, else the outcome on each row's last valid decision."""
    return rewarded(b).need("reward") if channel is None else b.need(f"reward.{channel}")


def informative_rows(b: Trajectories) -> torch.Tensor:
    """[N] booleans: the outcomes of the row's group are not all equal."""
    return group_stats(scored(b).need("score"), b.group)[2] > 0


def spread(b: Trajectories, a: Float[Tensor, " row"]) -> Float[Tensor, "row step"]:
    """One number per row on all its valid decisions, 0 elsewhere."""
    return torch.where(b.valid, a.unsqueeze(1), 0.0)


def finished(b: Trajectories) -> Bool[Tensor, " row"]:
    """Rows that ended: all of them unless `done` (or a bootstrap value) says otherwise."""
    if b.done is not None:
        return b.done != 0
    return torch.full((b.shape[0],), b.bootstrap is None, device=b.valid.device)
