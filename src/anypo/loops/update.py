"""The update of one minibatch. The objective is a pure function F of tensors [N, T]; its gradient reaches the network as
sum(dF/dlogp * logp), micro-batch by micro-batch, so it does not depend on how the minibatch is cut for memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.method import Method
from anypo.parts.statistics import index_groups
from anypo.stages import LEVELS, Policy, View
from anypo.types import Trajectories


def gradient(method: Method, policy: Policy, batch: Trajectories, micro: int) -> dict[str, Tensor]:
    """Back-propagate the method's loss on `batch` into the policy, at most `micro` decisions per forward pass.

    Rows in which F has no gradient are not sent through the network a second time. Returns the metrics of the loss.
    """
    views = method.live
    chunks = cut(batch, micro)
    if len(chunks) == 1:
        loss, metrics = method.loss(batch.put(look(policy, batch, views)))
        loss.backward()
        return metrics
    leaves = {name: view.requires_grad_() for name, view in evaluate(policy, batch, views, micro).items()}
    loss, metrics = method.loss(batch.put(leaves))
    slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
    slopes = {name: slope for name, slope in slopes.items() if slope is not None}
    views = {name: views[name] for name in slopes}
    for rows in chunks:
        alive = torch.stack([(slope[rows] != 0).flatten(1).any(1) for slope in slopes.values()]).any(0)
        rows = rows[alive]
        if len(rows):
            seen = look(policy, batch.rows(rows), views)
            sum(((slope[rows] * seen[name]).sum() for name, slope in slopes.items()), torch.zeros(())).backward()
    return metrics


def look(policy: Policy, batch: Trajectories, views: Mapping[str, View]) -> dict[str, Tensor]:
    """The views of a batch at the policy's present parameters, by the name of the field; one pass per layer read."""
    found: dict[str, Tensor] = {}
    for layer in dict.fromkeys(view.layer for view in views.values()):
        names = {name: view.functional for name, view in views.items() if view.layer == layer}
        for functional in names.values():
            if functional not in policy.functionals:
                raise UsageError(
                    f"the policy ({type(policy).__name__}) cannot give {functional!r}, which the method needs"
                )
        seen = policy.evaluate(batch, set(names.values()), **({} if layer is None else {"layer": layer}))
        found |= {name: seen[functional] for name, functional in names.items()}
    return found


@torch.no_grad()
def evaluate(policy: Policy, batch: Trajectories, views: Mapping[str, View], micro: int) -> dict[str, Tensor]:
    """The views of a batch without gradient, in the batch's row order."""
    chunks = cut(batch, micro)
    pieces = [look(policy, batch.rows(rows), views) for rows in chunks]
    back = torch.cat(chunks).argsort()
    return {name: torch.cat([piece[name] for piece in pieces])[back] for name in views}


LOGP = {"logp": View()}


def cut(batch: Trajectories, micro: int) -> list[Tensor]:
    """Row indices of micro-batches of at most `micro` decisions, rows of like length together (one row at least)."""
    rows, steps = batch.shape
    if rows * steps <= micro:
        return [torch.arange(rows, device=batch.valid.device)]
    lengths, order = batch.lengths.sort(descending=True, stable=True)
    pieces, start = [], 0
    while start < rows:
        size = max(1, micro // max(int(lengths[start]), 1))
        pieces.append(order[start : start + size])
        start += size
    return pieces


def minibatches(
    batch: Trajectories, method: Method, independent: bool, size: int | None, generator: torch.Generator
) -> Iterator[Trajectories]:
    """One shuffled pass over the batch, in minibatches of about `size` (equal within one, nothing dropped).

    The unit is the smallest that keeps the objective exact: single decisions where method and policy allow cutting, else
    rows, else whole groups; a method that needs the whole batch gets it.
    """
    level = LEVELS.index(method.level)
    if not size or level == LEVELS.index("batch"):
        yield batch
        return
    if level == LEVELS.index("decision") and independent:
        batch = batch.decisions()
    rows = batch.shape[0]
    if level == LEVELS.index("group") and batch.group is not None:
        unit, units = index_groups(batch.group)
    else:
        unit, units = torch.arange(rows), rows
    pieces = max(1, round(rows / size))
    order = torch.randperm(units, generator=generator)
    for piece in order.tensor_split(min(pieces, max(units, 1))):
        yield batch.rows(torch.isin(unit, piece).nonzero()[:, 0] if units != rows else piece)


def first_nonfinite(batch: Trajectories, metrics: dict[str, Any]) -> str:
    """Name of the first tensor of a batch, or metric, that is not finite where it counts."""
    valid = batch.valid
    for name in ("logp_old", "logp_ref", "reward", "score", "value", "value_old", "returns", "advantage", "weight"):
        tensor = batch.get(name)
        if tensor is not None:
            bad = ~tensor.isfinite()
            if bool((bad & valid).any() if bad.ndim == 2 else bad.any()):
                return f"the batch's {name}"
    for name, value in metrics.items():
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float64)):
            return f"the metric {name}"
    return "the gradient"
