"""Segments: the decisions that one action consists of. Without `segment` every decision is an action of its own. Fields with
components, [N, T, A], may also be plain numbers, [N, T]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.types import Trajectories


def segments(b: Trajectories) -> tuple[Int[Tensor, "row step"], Bool[Tensor, "row step"]]:
    """For every valid decision the number of its segment within the row, from 0, and whether it is the segment's first."""
    valid = b.valid
    place = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    name = place if b.segment is None else b.segment
    last = torch.where(valid, place, -1).cummax(1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)
    first = valid & ((before < 0) | (name != name.gather(1, before.clamp(min=0))))
    return (first.cumsum(1) - 1).clamp(min=0), first


def split_segments(b: Trajectories) -> Trajectories:
    """Return every segment as a row of its own, [M, K], shorter ones padded on the right with masked slots."""
    (_, first), valid, steps = segments(b), b.valid, b.shape[1]
    flat = valid.flatten().nonzero()[:, 0]
    starts = first.flatten()[flat].nonzero()[:, 0]
    row = first.flatten()[flat].cumsum(0) - 1
    place = torch.arange(len(flat), device=flat.device) - starts[row]
    index = flat.new_zeros((len(starts), int(place.max()) + 1 if len(flat) else 0))
    index[row, place] = flat
    mask = torch.zeros_like(index, dtype=torch.bool)
    mask[row, place] = True
    return b.but(mask=valid).regroup(index, flat[starts] // max(steps, 1)).but(mask=None if bool(mask.all()) else mask)


def segment_sum(
    x: Float[Tensor, "row step"], of: Int[Tensor, "row step"], mask: Bool[Tensor, "row step"]
) -> Float[Tensor, "row segment"]:
    """y_k = sum of x_t over the marked decisions with of_t = k."""
    return x.new_zeros(len(x), int(of.max()) + 1).scatter_add(1, of, torch.where(mask, x, 0.0))


def squared_gap(b: Trajectories, name: str, anchor: str) -> Float[Tensor, "row step"]:
    """d = mean over components of (x - sg(x_anchor))^2 of a field and the same of an anchor; 0 under the mask."""
    x, y = b.get(name), b.get(f"{name}_{anchor}")
    valid = b.valid if x.ndim == 2 else b.valid.unsqueeze(2)
    squared = (torch.where(valid, x, 0.0) - torch.where(valid, y, 0.0).detach()).square()
    return squared if x.ndim == 2 else squared.mean(2)


def positive_scale(b: Trajectories, name: str) -> Float[Tensor, "row step"]:
    """Return a positive field, 1 under the mask, so that dividing by it does no harm there."""
    return torch.where(b.valid, b.get(name), 1.0).detach()
