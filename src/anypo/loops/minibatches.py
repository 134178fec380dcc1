"""Cut batches into minibatches and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from anypo.method.method import Method
from anypo.parts.ops.groups import index_groups
from anypo.parts.ops.segments import split_segments
from anypo.stages import LEVELS
from anypo.types import LAST_MASK, Trajectories


def fits(batch: Trajectories, micro: int) -> bool:
    """Whether one forward pass takes the whole batch."""
    rows, steps = batch.shape
    return rows * steps <= micro


def microbatches(batch: Trajectories, micro: int) -> list[Tensor]:
    """Row indices of micro-batches of at most `micro` decisions, rows of like length together (one row at least)."""
    rows = batch.shape[0]
    if fits(batch, micro):
        return [torch.arange(rows, device=batch.valid.device)]
    lengths, order = batch.lengths.sort(descending=True, stable=True)
    pieces, start = [], 0
    while start < rows:
        size = max(1, micro // max(int(lengths[start]), 1))
        pieces.append(order[start : start + size])
        start += size
    return pieces


def flatten_decisions(batch: Trajectories, method: Method, independent: bool, size: int | None) -> Trajectories:
    """Make every decision, or every segment, a row of its own where minibatches may be cut from those; how a row ended is dropped.

    Args:
        batch: prepared rows.
        method: its level says what has to stay together.
        independent: the policy evaluates each decision alone.
        size: of the minibatches; 0 or None keeps the rows.
    """
    if not (size and independent and method.level in ("decision", "segment")):
        return batch
    extra = {name: tensor for name, tensor in batch.extra.items() if name not in ("last", LAST_MASK)}
    batch = batch.but(bootstrap=None, done=None, truncated=None, extra=extra)
    return batch.decisions() if method.level == "decision" else split_segments(batch)


def minibatches(
    batch: Trajectories, method: Method, size: int | None, generator: torch.Generator
) -> Iterator[Trajectories]:
    """One shuffled pass over the batch, in minibatches of about `size` (equal within one, nothing dropped).

    The unit is the smallest that keeps the objective exact: rows (single decisions after `flatten_decisions`), else whole
    groups; a method of level `batch` gets the whole batch.

    Args:
        batch: prepared rows.
        method: its level says what has to stay together.
        size: rows per minibatch; 0 or None for the whole batch.
        generator: of the shuffle.
    """
    level = LEVELS.index(method.level)
    if not size or level == LEVELS.index("batch"):
        yield batch
        return
    rows = batch.shape[0]
    if level == LEVELS.index("group") and batch.group is not None:
        unit, units = index_groups(batch.group)
    else:
        unit, units = torch.arange(rows), rows
    pieces = max(1, round(rows / size))
    order, pieces = torch.randperm(units, generator=generator), min(pieces, max(units, 1))
    if units == rows:  # the whole pass is put in order at once: a minibatch is then a slice, which copies nothing
        yield from batch.rows(order).slices(pieces)
        return
    for piece in order.tensor_split(pieces):
        yield batch.rows(torch.isin(unit, piece).nonzero()[:, 0])
