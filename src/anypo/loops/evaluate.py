"""Evaluate on held-out starts."""

from __future__ import annotations

import torch

from anypo.loops.precision import autocast
from anypo.runs.run import Run


def held_out(run: Run) -> dict[str, float]:
    """Measure the greedy policy on held-out starts, with a generator of its own so that training does not change."""
    with torch.no_grad(), autocast(run):
        measures = run.task.evaluate(run.policy, run.config.seed, run.config.episodes)
    return {f"eval/{name}": float(value) for name, value in measures.items()}
