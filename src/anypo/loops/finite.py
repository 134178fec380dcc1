"""Numbers that are not finite: where they came from, and when they end a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from anypo.errors import RunError
from anypo.policies.weights import first_bad_weight
from anypo.runs.files import dump
from anypo.runs.run import Run
from anypo.types import Trajectories

PATIENCE = 5
"""Updates in a row that may be skipped for numbers that are not finite, and batches in a row without any reward, before the run
stops; both are counted across batches and kept in checkpoints."""


ORDER = ("logp_old", "logp_ref", "reward", "score", "value", "value_old", "returns", "advantage", "weight")
"""Fields of a batch in the order in which one spoils the next; what was observed comes before them."""


def first_nonfinite(run: Run, batch: Trajectories, metrics: dict[str, Any]) -> str:
    """Name the first bad tensor of an update by where it came from: a weight, an observation, a field, a metric.

    Args:
        run: whose weights.
        batch: the minibatch.
        metrics: of the update.
    """
    if (name := first_bad_weight(run.policy)) is not None:
        return f"the policy's weight {name}"
    observed = {f"observed {name}": tensor for name, tensor in batch.trace.items()}
    for name, tensor in {**observed, **{name: batch.get(name) for name in ORDER}}.items():
        if tensor is not None and tensor.is_floating_point() and bad_where_valid(batch, tensor):
            return f"the batch's {name}"
    for name, value in metrics.items():
        if name != "grad_norm" and not math.isfinite(float(value)):
            return f"the metric {name}"
    return "the gradient"


def bad_where_valid(batch: Trajectories, tensor: Tensor) -> bool:
    """Whether a tensor of a batch is not finite at some decision that counts."""
    bad = ~tensor.isfinite()
    if bad.shape[:2] == batch.shape:
        bad = bad.flatten(2).any(2) if bad.ndim > 2 else bad
        bad = bad & batch.valid
    return bool(bad.any())


def report_nonfinite(run: Run, rows: Trajectories, metrics: dict[str, float]) -> None:
    """Count a skipped update and keep its minibatch; stop the run after `PATIENCE` of them in a row.

    Args:
        run: the run.
        rows: the minibatch.
        metrics: of the update.

    Raises:
        RunError: it was the last that is tolerated.
    """
    run.skipped += 1
    cause = first_nonfinite(run, rows, metrics)
    path = dump(run, rows, cause)
    if run.skipped >= PATIENCE:
        where = "" if path is None else f"; a batch of them is in {path}"
        raise RunError(
            f"{run.skipped} updates in a row were not finite: {cause} is the first bad tensor{where},"
            " the last healthy checkpoint is untouched"
        )


def require_finite(run: Run) -> None:
    """Refuse to go on, or to write a checkpoint, with weights, anchors or an optimizer that are not finite.

    Raises:
        RunError: naming the first bad tensor; or, at the end of a run, that half of its updates or more, the last ones, were not finite.
    """
    bad = first_bad_weight(run.policy)
    if bad is not None:
        bad = f"the policy's weight {bad} is not finite"
    else:
        kept = {f"anchor {name}": weights for name, weights in run.anchors.items()}
        kept["state of the step"] = run.stepper.state_dict()
        bad = next((f"the {path} is not finite" for path, x in tensors(kept, "") if bool(x.isnan().any())), None)
    if bad is not None:
        when = f"after {run.stepper.updates} updates" if run.stepper.updates else "before the first update"
        raise RunError(f"{bad} {when}; no checkpoint was written of it")
    if run.finished and run.skipped and run.skipped >= run.stepper.updates:
        total = run.skipped + run.stepper.updates
        raise RunError(f"the last {run.skipped} of the run's {total} updates were not finite, so it is no result")


def tensors(kept: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in nested dictionaries and lists, with its path."""
    if isinstance(kept, Tensor):
        if kept.is_floating_point():
            yield path, kept
    elif isinstance(kept, (dict, list, tuple)):
        for key, value in kept.items() if isinstance(kept, dict) else enumerate(kept):
            yield from tensors(value, f"{path} {key}".strip())


def require_measure(run: Run, measures: dict[str, Any]) -> None:
    """Refuse a held-out measure that is not a number; it is one only where no held-out reward is missing throughout."""
    name = f"eval/{run.metric}"
    if not math.isfinite(measures[name]):
        raise RunError(
            f"the held-out {run.metric} of {run.task.name} is {measures[name]}: every reward is missing or not finite"
        )


def count_missing(run: Run, metrics: dict[str, float]) -> None:
    """Count batches in a row of which every reward is missing.

    Raises:
        RunError: there were `PATIENCE` of them, or no others by the end of the run.
    """
    run.missing = run.missing + 1 if metrics.get("reward_missing") == 1 else 0
    if run.missing >= PATIENCE or (run.finished and 0 < run.missing == run.batch):
        raise RunError(f"every reward of the last {run.missing} batches is missing, so nothing can be learned")
