"""The update of one minibatch. The objective is a pure function F of tensors [N, T]; its gradient reaches the network as
sum(dF/dlogp * logp), micro-batch by micro-batch, so it does not depend on how the minibatch is cut for memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anypo.errors import RunError
from anypo.loops.anchors import follow
from anypo.loops.compiled_update import compile_if_frequent
from anypo.loops.diagnostics import first_loss_is_on_policy, first_nonfinite, mismatch
from anypo.loops.minibatches import fits, flatten_decisions, microbatches, minibatches
from anypo.loops.precision import autocast
from anypo.loops.views import compute_views, evaluate_views, minibatch_views, views_without_grad
from anypo.method.method import Method
from anypo.protocols import Policy
from anypo.runs.files import dump
from anypo.runs.run import Run
from anypo.types import Trajectories

PATIENCE = 5
"""Updates in a row that may be skipped for numbers that are not finite before the run stops."""


def replay_loss(run: Run, method: Method, rows: Trajectories) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of rows from the store that are used once, in one pass."""
    rows = method.prepare(compute_views(run, method, rows))
    with autocast(run):
        return loss_on(method, run.policy, rows)


def minibatch_loss(run: Run, method: Method, rows: Trajectories) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of a minibatch of prepared rows, in one pass."""
    with autocast(run):
        return loss_on(method, run.policy, rows)


def backward(run: Run, method: Method, fresh: bool, piece: Trajectories) -> dict[str, Any]:
    """Back-propagate the loss on a minibatch; gives its metrics."""
    with autocast(run):
        return gradient(method, run.policy, piece, run.config.micro, fresh)


def update(
    run: Run, method: Method, batch: Trajectories, replay: Callable[[Trajectories], dict[str, float]] | None = None
) -> dict[str, float]:
    """All epochs and minibatches of one batch; returns the mean of every metric over the updates made. replay: gives the
    gradient of the whole batch instead."""
    recipe = method.stages["step"]
    totals: dict[str, list[float]] = {}
    if batch.mask is not None and not bool(batch.valid.any()):
        return {"updates": 0.0}
    skipped, fresh = 0, replay is None and batch.logp_old is not None and first_loss_is_on_policy(run, method)
    before = None if run.batch else [p.detach().clone() for p in run.policy.parameters() if p.requires_grad]
    batch = flatten_decisions(batch, method, run.policy.independent, recipe.minibatch)  # once for all epochs
    for _ in range(recipe.epochs or 1):
        for part in minibatches(batch, method, recipe.minibatch, run.generator):
            part = minibatch_views(run, method, part)
            size = math.ceil(part.shape[0] / run.stepper.pieces) if run.stepper.pieces > 1 else None
            pieces = minibatches(part, method, size, run.generator)
            slope = (
                replay
                or compile_if_frequent(run, method, part, minibatch_loss)
                or partial(backward, run, method, fresh)
            )
            metrics = run.stepper.update(*(partial(slope, piece) for piece in pieces))
            method.update("update", metrics, run.stepper.progress, part)
            fresh = False
            follow(run)
            if metrics["skipped"]:
                skipped += 1
                cause = first_nonfinite(part, metrics)
                path = dump(run, part, cause)
                if skipped >= PATIENCE:
                    raise RunError(
                        f"{skipped} updates in a row were not finite: {cause} is the first bad tensor; the batch is in {path},"
                        " the last healthy checkpoint is untouched"
                    )
            else:
                skipped = 0
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
    if before is not None:
        moved = any(
            not torch.equal(b, p)
            for b, p in zip(before, (p for p in run.policy.parameters() if p.requires_grad), strict=True)
        )
        made = [norm for norm, skip in zip(totals["grad_norm"], totals["skipped"], strict=True) if not skip]
        if not moved and max(made, default=0.0) > 0 and max(totals["lr"]) > 0:
            raise RunError(
                "no trainable parameter changed in the first update although neither gradient nor learning rate is zero"
            )
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "skipped": sum(totals["skipped"]), "updates": float(len(totals["loss"]))}


def gradient(method: Method, policy: Policy, batch: Trajectories, micro: int, fresh: bool = False) -> dict[str, Tensor]:
    """Back-propagate the method's loss on `batch` into the policy, at most `micro` decisions per forward pass.

    Rows in which F has no gradient are not sent through the network a second time. Returns the metrics of the loss, and of a
    policy that is as it sampled the batch (`fresh`) also the `mismatch`.
    """
    if fits(batch, micro):
        seen = evaluate_views(policy, batch, method.live)
        loss, metrics = method.loss(batch.put(seen))
        if loss.requires_grad:
            loss.backward()
        return metrics | ({"mismatch": mismatch(seen["logp"], batch)} if fresh else {})
    views = method.live
    chunks = microbatches(batch, micro)
    leaves = {name: view.requires_grad_() for name, view in views_without_grad(policy, batch, views, micro).items()}
    loss, metrics = method.loss(batch.put(leaves))
    slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
    slopes = {name: slope for name, slope in slopes.items() if slope is not None}
    views = {name: views[name] for name in slopes}
    for rows in chunks:
        alive = torch.stack([(slope[rows] != 0).flatten(1).any(1) for slope in slopes.values()]).any(0)
        rows = rows[alive]
        if len(rows):
            seen = evaluate_views(policy, batch.rows(rows), views)
            sum(((slope[rows] * seen[name]).sum() for name, slope in slopes.items()), torch.zeros(())).backward()
    return metrics | ({"mismatch": mismatch(leaves["logp"], batch)} if fresh else {})


def loss_on(method: Method, policy: Policy, batch: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss on `batch` in one forward pass, and its metrics."""
    return method.loss(batch.put(evaluate_views(policy, batch, method.live)))
