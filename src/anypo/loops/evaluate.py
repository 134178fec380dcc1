"""Evaluate on held-out starts."""

from __future__ import annotations

import torch

from anypo.errors import UsageError, unknown
from anypo.loops.precision import autocast
from anypo.runs.run import Run

ERRORS = ("regret", "perplexity", "return_std")
"""Measures of which less is better."""


def held_out(run: Run) -> dict[str, float]:
    """Measure the greedy policy on held-out starts, with a generator of its own so that training does not change.

    Raises:
        UsageError: the run's metric is not among the measures, or less of it is better.
    """
    with torch.no_grad(), autocast(run):
        measures = run.task.evaluate(run.policy, run.config.seed, run.config.episodes)
    if run.metric not in measures:
        raise unknown("metric", run.metric, measures)
    if run.metric in ERRORS:
        others = ", ".join(name for name in measures if name not in ERRORS)
        raise UsageError(f"of {run.metric} less is better; --metric takes a measure of which more is better: {others}")
    return {f"eval/{name}": float(value) for name, value in measures.items()}
