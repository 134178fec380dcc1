"""Hypothesis strategies over the laboratory's random batches. Shared by the suites of every family."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from anypo import Method, Trajectories
from anypo.evidence.batches import (
    FLOAT_STEP_FIELDS,
    LEAVES,
    all_reads,
    fill_masked,
    gradients,
    needs,
    random_advantage,
    random_batch,
    same_bits,
)

__all__ = [
    "FLOAT_STEP_FIELDS",
    "LEAVES",
    "all_reads",
    "batches",
    "fill_masked",
    "gradients",
    "needs",
    "random_advantage",
    "random_batch",
    "same_bits",
]


@st.composite
def batches(draw: st.DrawFn, method: Method | None = None, **fixed: Any) -> Trajectories:
    """Random batches that hold whatever `method` reads; `fixed` pins arguments of `random_batch`."""
    arguments: dict[str, Any] = {
        "rows": draw(st.integers(1, 7)),
        "steps": draw(st.integers(1, 6)),
        "holes": draw(st.sampled_from([0.0, 0.3, 0.7])),
        "outcome": draw(st.sampled_from(["score", "scores", "reward"])),
        "spread": draw(st.sampled_from([0.0, 0.3, 2.0])),
    } | ({} if method is None else needs(method))
    return random_batch(draw(st.integers(0, 2**32 - 1)), **(arguments | fixed))
