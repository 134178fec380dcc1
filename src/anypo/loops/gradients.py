"""Gradients of one minibatch. The objective is a pure function F of tensors [N, T]; its gradient reaches the network as
sum(dF/dlogp * logp), micro-batch by micro-batch, so it does not depend on how the minibatch is cut for memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anypo.loops.diagnostics import mismatch
from anypo.loops.minibatches import fits, microbatches
from anypo.loops.precision import autocast
from anypo.loops.views import compute_views, evaluate_views, views_without_grad
from anypo.method.method import Method
from anypo.protocols import Policy
from anypo.runs.run import Run
from anypo.types import Trajectories


def backward(run: Run, method: Method, on_policy: bool, piece: Trajectories) -> dict[str, Any]:
    """Back-propagate the loss on a minibatch; return its metrics.

    Args:
        run: the run.
        method: the present phase.
        on_policy: the policy is as it sampled the rows, so the metrics include the `mismatch`.
        piece: prepared rows.
    """
    with autocast(run):
        return gradient(method, run.policy, piece, run.config.micro, on_policy)


def gradient(
    method: Method, policy: Policy, batch: Trajectories, micro: int, on_policy: bool = False
) -> dict[str, Tensor]:
    """Back-propagate the method's loss on `batch` into the policy, at most `micro` decisions per forward pass.

    Rows in which F has no gradient are not sent through the network a second time.

    Args:
        method: whose loss.
        policy: receives the gradient.
        batch: prepared rows.
        micro: decisions.
        on_policy: the policy is as it sampled the batch, so the metrics include the `mismatch`.
    """
    if fits(batch, micro):
        values = evaluate_views(policy, batch, method.live)
        loss, metrics = method.loss_of_clean(batch.put_clean(values))
        if loss.requires_grad:
            loss.backward()
        return metrics | ({"mismatch": mismatch(values["logp"], batch)} if on_policy else {})
    views = method.live
    leaves = {name: view.requires_grad_() for name, view in views_without_grad(policy, batch, views, micro).items()}
    loss, metrics = method.loss_of_clean(batch.put_clean(leaves))
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
    grads = {name: grad for name, grad in grads.items() if grad is not None}
    views = {name: views[name] for name in grads}
    for rows in microbatches(batch, micro):
        alive = torch.stack([(grad[rows] != 0).flatten(1).any(1) for grad in grads.values()]).any(0)
        rows = rows[alive]
        if len(rows):
            values = evaluate_views(policy, batch.rows(rows), views)
            sum(((grad[rows] * values[name]).sum() for name, grad in grads.items()), torch.zeros(())).backward()
    return metrics | ({"mismatch": mismatch(leaves["logp"], batch)} if on_policy else {})


def loss_on(method: Method, policy: Policy, batch: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the method's loss on `batch` in one forward pass, and its metrics: loss = F(views(policy, batch))."""
    return method.loss_of_clean(batch.put_clean(evaluate_views(policy, batch, method.live)))


def replay_loss(run: Run, method: Method, rows: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of rows from the store that are used once, in one pass: loss = F(views(policy, prepare(rows)))."""
    rows = method.prepare(compute_views(run, method, rows))
    with autocast(run):
        return loss_on(method, run.policy, rows)


def minibatch_loss(run: Run, method: Method, rows: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of a minibatch of prepared rows, in one pass: loss = F(views(policy, rows))."""
    with autocast(run):
        return loss_on(method, run.policy, rows)
