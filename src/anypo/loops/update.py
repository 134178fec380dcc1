"""All epochs and minibatches of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from anypo.errors import RunError
from anypo.loops.anchors import follow
from anypo.loops.compiled_update import Traces
from anypo.loops.diagnostics import first_loss_is_on_policy
from anypo.loops.finite import report_nonfinite
from anypo.loops.gradients import backward
from anypo.loops.minibatches import flatten_decisions, minibatches
from anypo.loops.views import minibatch_views
from anypo.method.method import Method
from anypo.runs.run import Run
from anypo.types import Trajectories

Backward = Callable[[Trajectories], dict[str, Any]]
"""Leaves the gradient of a minibatch on the parameters and returns the loss's metrics."""


def update(run: Run, method: Method, batch: Trajectories, replay: Backward | None = None) -> dict[str, float]:
    """Make all updates of one batch; return the mean of every metric over them.

    Args:
        run: the run.
        method: the present phase.
        batch: prepared rows; with `replay`, rows as the trace expects them.
        replay: gives the gradient of the whole batch instead of evaluating minibatches.

    Raises:
        RunError: `PATIENCE` updates in a row were not finite, or the first update changed nothing.
    """
    if batch.mask is not None and not bool(batch.valid.any()):
        return {"updates": 0.0}
    recipe, traces = method.stages["step"], Traces.of(run)
    on_policy = replay is None and batch.logp_old is not None and first_loss_is_on_policy(run, method)
    before = None if run.batch else trainable_copy(run)
    batch = flatten_decisions(batch, method, run.policy.independent, recipe.minibatch)  # once for all epochs
    totals: dict[str, list[float]] = {}
    for _ in range(recipe.epochs or 1):
        for rows in minibatches(batch, method, recipe.minibatch, run.generator):
            rows = minibatch_views(run, method, rows)
            size = math.ceil(rows.shape[0] / run.stepper.splits) if run.stepper.splits > 1 else None
            pieces = minibatches(rows, method, size, run.generator)
            grad = replay or traces.of_minibatch(run, method, rows) or partial(backward, run, method, on_policy)
            metrics = run.stepper.update(*(partial(grad, piece) for piece in pieces))
            on_policy = False
            if metrics["skipped"]:
                report_nonfinite(run, rows, metrics)
            else:
                run.skipped = 0
                method.update("update", metrics, run.stepper.progress, rows)
                follow(run)
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
    if before is not None:
        check_moved(run, before, totals)
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "skipped": sum(totals["skipped"]), "updates": float(len(totals["loss"]))}


def trainable_copy(run: Run) -> list[Tensor]:
    """Return copies of the trainable parameters."""
    return [p.detach().clone() for p in run.policy.parameters() if p.requires_grad]


def check_moved(run: Run, before: list[Tensor], totals: dict[str, list[float]]) -> None:
    """Refuse a first batch whose updates had a gradient and a learning rate and changed no parameter.

    Args:
        run: after the updates.
        before: the parameters before them.
        totals: metrics of every update.
    """
    moved = any(not p.equal(b) for p, b in zip(trainable_copy(run), before, strict=True))
    norms = [norm for norm, skip in zip(totals["grad_norm"], totals["skipped"], strict=True) if not skip]
    if not moved and max(norms, default=0.0) > 0 and max(totals["lr"]) > 0:
        raise RunError(
            "no trainable parameter changed in the first update although neither gradient nor learning rate is zero"
        )
