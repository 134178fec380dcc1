"""Evaluate on held-out starts."""

from __future__ import annotations

import torch

from anypo.loops.precision import autocast
from anypo.runs.run import Run


def held_out(run: Run) -> dict[str, float]:
    """The task's measures on held-out starts, greedy, with randomness of its own so that training is not disturbed."""
    with torch.no_grad(), autocast(run):
        found = run.task.evaluate(run.policy, torch.Generator().manual_seed(run.config.seed), run.config.episodes)
    return {f"eval/{name}": float(value) for name, value in found.items()}
