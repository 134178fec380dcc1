"""Pairs of rows of a group, ordered by rank."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import MissingField
from anypo.types import Trajectories


def ranks(b: Trajectories) -> Float[Tensor, " row"]:
    """Return what orders the rows of a group: the mark of preference data, else the score."""
    order = b.get("preferred")
    order = b.score if order is None else order
    if order is None:
        raise MissingField("score")
    return order


def ranked_pairs(b: Trajectories) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """(better, worse): rows of every pair of a group that differ in rank; rows without decisions are in none."""
    rank, there = ranks(b), b.lengths > 0
    return _pairs(b, there[:, None] & there & (rank[:, None] > rank))


def all_pairs(b: Trajectories) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Every unordered pair of rows of a group that have an outcome, the earlier row first."""
    place = torch.arange(b.shape[0], device=b.valid.device)
    known = torch.ones_like(place, dtype=torch.bool) if b.score is None else ~b.score.isnan()
    return _pairs(b, (place[:, None] < place) & known[:, None] & known)


def _pairs(b: Trajectories, allowed: Tensor) -> tuple[Tensor, Tensor]:
    if b.group is None:
        raise MissingField("group")
    one, other = ((b.group[:, None] == b.group) & allowed).nonzero().unbind(1)
    return one, other


def agreement(gap: Float[Tensor, " pair"]) -> dict[str, Tensor]:
    """Share of pairs that the policy ranks as preferred, and the mean margin (nats)."""
    count = max(len(gap), 1)
    return {"ranking_accuracy": (gap.detach() > 0).to(gap.dtype).sum() / count, "margin": gap.detach().sum() / count}


def row_weight(b: Trajectories, like: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Return what a row counts: the mean weight of its decisions, 1 without weights."""
    return torch.ones_like(like) if b.weight is None else b.row_mean(b.weight)
