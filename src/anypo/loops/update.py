"""The update of one minibatch. The objective is a pure function F of tensors [N, T]; its gradient reaches the network as
sum(dF/dlogp * logp), micro-batch by micro-batch, so it does not depend on how the minibatch is cut for memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.method import Method
from anypo.parts.statistics import index_groups, masked_mean
from anypo.policies.anchor import applied
from anypo.stages import LEVELS, Draw, Policy, View
from anypo.types import Trajectories

Anchor = dict[str, Tensor]


def gradient(method: Method, policy: Policy, batch: Trajectories, micro: int, fresh: bool = False) -> dict[str, Tensor]:
    """Back-propagate the method's loss on `batch` into the policy, at most `micro` decisions per forward pass.

    Rows in which F has no gradient are not sent through the network a second time. Returns the metrics of the loss, and of a
    policy that is as it sampled the batch (`fresh`) also the `mismatch`.
    """
    if fits(batch, micro):
        seen = look(policy, batch, method.live)
        loss, metrics = method.loss(batch.put(seen))
        if loss.requires_grad:
            loss.backward()
        return metrics | ({"mismatch": disagreement(seen["logp"], batch)} if fresh else {})
    views = method.live
    chunks = cut(batch, micro)
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
    return metrics | ({"mismatch": disagreement(leaves["logp"], batch)} if fresh else {})


@torch.no_grad()
def disagreement(logp: Tensor, batch: Trajectories) -> Tensor:
    """Mean |log pi - log pi_old| (nats) over the policy's own decisions."""
    assert batch.logp_old is not None
    own = batch.valid if batch.expert_mask is None else batch.valid & ~batch.expert_mask[:, None]
    return masked_mean((logp - batch.logp_old).abs(), own)


def objective(method: Method, policy: Policy, batch: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss on `batch` in one forward pass, and its metrics."""
    return method.loss(batch.put(look(policy, batch, method.live)))


def look(
    policy: Policy, batch: Trajectories, views: Mapping[str, View], anchors: Mapping[str, Anchor] | None = None
) -> dict[str, Tensor]:
    """The views of a batch by the name of the field: one pass for all that share parameters, input and layer.

    Parameters are the policy's present ones, or those of an anchor; proposed actions are made once per draw, from the
    random numbers that stand in the trace (`with_noise`).
    """
    found: dict[str, Tensor] = {}
    proposed: dict[Draw, tuple[Tensor, Tensor | None]] = {}
    passes: dict[tuple[Any, ...], dict[str, str]] = {}
    for name, view in views.items():
        passes.setdefault((view.of, view.at, view.draw, view.layer), {})[name] = view.functional
    for (of, at, draw, layer), names in passes.items():
        seen = batch if at == "here" else following(batch)
        if draw is not None:
            if draw not in proposed:
                with standing(policy, anchors, draw.of):
                    proposed[draw] = propose(policy, batch if draw.at == "here" else following(batch), draw)
            action, logp = proposed[draw]
            ready = {"action": action, "logp": logp}
            found |= {name: ready[f] for name, f in names.items() if ready.get(f) is not None}  # pyright: ignore[reportAssignmentType]
            names = {name: f for name, f in names.items() if ready.get(f) is None}
            seen = seen.but(trace={**seen.trace, "action": action})
        for functional in names.values():
            if functional not in policy.functionals:
                raise UsageError(
                    f"the policy ({type(policy).__name__}) cannot give {functional!r}, which the method needs"
                )
        if names:
            options = ({} if layer is None else {"layer": layer}) | ({"frozen": True} if draw and draw.live else {})
            with standing(policy, anchors, of):
                values = policy.evaluate(seen, set(names.values()), **options)
            found |= {name: values[functional] for name, functional in names.items()}
    return found


def standing(policy: Any, anchors: Mapping[str, Anchor] | None, of: str) -> AbstractContextManager[Any]:
    """Inside, the policy computes with the weights of an anchor, or with its own (`now`)."""
    return nullcontext() if of == "now" or anchors is None else applied(policy, anchors[of])


def following(batch: Trajectories) -> Trajectories:
    """The batch with every observation replaced by the one that followed."""
    if "next" not in batch.trace:
        raise UsageError("the method looks one step ahead, and this batch does not say what was observed next")
    return batch.but(trace={**batch.trace, "obs": batch.trace["next"]})


def propose(policy: Any, batch: Trajectories, draw: Draw) -> tuple[Tensor, Tensor | None]:
    """Actions for the observations of the batch, and their log-probabilities."""
    if not hasattr(policy, "propose"):
        raise UsageError(f"the policy ({type(policy).__name__}) cannot propose actions, which the method needs")
    if draw.live:
        return policy.propose(batch, draw, batch.trace.get(noise_key(draw)))
    with torch.no_grad():
        return policy.propose(batch, draw, batch.trace.get(noise_key(draw)))


@cache
def noise_key(draw: Draw) -> str:
    """Name under which the random numbers of a draw stand in the trace."""
    return f"noise of {draw}"


def with_noise(policy: Any, batch: Trajectories, views: Mapping[str, View], generator: torch.Generator) -> Trajectories:
    """The batch with random numbers for every draw of its views."""
    draws = dict.fromkeys(view.draw for view in views.values() if view.draw is not None)
    if not draws or not hasattr(policy, "noise"):
        return batch
    found = {noise_key(draw): policy.noise(batch, draw, generator) for draw in draws}
    if any(view.functional == "luck" for view in views.values()):
        found["luck"] = torch.randn(batch.shape, generator=generator)
    if latent := getattr(policy, "latent", 0):
        found["latent"] = torch.randn(*batch.shape, latent, generator=generator)
    return batch.but(trace={**batch.trace, **{key: noise for key, noise in found.items() if noise is not None}})


@torch.no_grad()
def evaluate(
    policy: Policy,
    batch: Trajectories,
    views: Mapping[str, View],
    micro: int,
    anchors: Mapping[str, Anchor] | None = None,
) -> dict[str, Tensor]:
    """The views of a batch without gradient, in the batch's row order."""
    if fits(batch, micro):
        return look(policy, batch, views, anchors)
    chunks = cut(batch, micro)
    pieces = [look(policy, batch.rows(rows), views, anchors) for rows in chunks]
    back = torch.cat(chunks).argsort()
    return {name: torch.cat([piece[name] for piece in pieces])[back] for name in views}


LOGP = {"logp": View()}


def fits(batch: Trajectories, micro: int) -> bool:
    """Whether one forward pass takes the whole batch."""
    rows, steps = batch.shape
    return rows * steps <= micro


def cut(batch: Trajectories, micro: int) -> list[Tensor]:
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


def loosened(batch: Trajectories, method: Method, independent: bool, size: int | None) -> Trajectories:
    """The batch as single decisions, where minibatches of `size` may be cut from those. What a row ended in is not theirs."""
    if not (size and independent and method.level == "decision"):
        return batch
    extra = {name: tensor for name, tensor in batch.extra.items() if name != "last"}
    return batch.but(bootstrap=None, done=None, truncated=None, extra=extra).decisions()


def minibatches(
    batch: Trajectories, method: Method, size: int | None, generator: torch.Generator
) -> Iterator[Trajectories]:
    """One shuffled pass over the batch, in minibatches of about `size` (equal within one, nothing dropped).

    The unit is the smallest that keeps the objective exact: rows (single decisions, once `loosened`), else whole groups; a method
    that needs the whole batch gets it.
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
