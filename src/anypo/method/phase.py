"""Phases: differences of a method that begin later in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from anypo.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """A difference that begins later; what an earlier phase changed stays.

    stages: the stages that change. after: batches of the run, or of the present cycle, after which it begins. metric, least: it begins
    after the first batch of the phase before whose metric is at least that; with `after` too, whichever comes first. moves: how the
    names of the parameters begin that are trained from then on (None: all). carry: stages whose state goes on although their part
    changes: what a `store` holds, the moments of a `step`; otherwise both begin anew. renew: anchors that are the policy as it is then.
    """

    stages: Mapping[str, Any] = field(default_factory=dict)
    after: int | None = None
    metric: str | None = None
    least: float = 0.0
    moves: tuple[str, ...] | None = None
    carry: tuple[Literal["store", "step"], ...] = ()
    renew: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.after is None and self.metric is None:
            raise UsageError(
                "a phase begins after a number of batches, or when a metric says so; give `after` or `metric`"
            )

    def begins(self, batches: int, metrics: Mapping[str, float]) -> bool:
        """Whether it begins now.

        Args:
            batches: of the run or cycle so far.
            metrics: the latest that were measured in the phase before.
        """
        due = self.after is not None and batches >= self.after
        return due or (self.metric is not None and metrics.get(self.metric, float("-inf")) >= self.least)

    def text(self) -> str:
        """Say when it begins."""
        counted = [] if self.after is None else [f"after {self.after} batches"]
        return " or ".join(
            [*counted, *([] if self.metric is None else [f"when {self.metric} is at least {self.least:g}"])]
        )


def next_phase(phases: Sequence[Phase], number: int, batches: int, metrics: Mapping[str, float]) -> int:
    """Return the number of the phase of the coming batch; phases that are due at once begin together, as the last of them.

    Args:
        phases: those after the first.
        number: of the present one, from 0.
        batches: of the run or cycle so far.
        metrics: the latest of the present phase.
    """
    while number < len(phases) and phases[number].begins(batches, metrics):
        number += 1
    return number


def with_changes(stages: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stages with some replaced; what a new step or collect part leaves open (None) is as it was.

    Args:
        stages: of the phase before.
        changes: parts by stage.
    """
    changed = dict(changes)
    for slot in ("step", "collect"):
        if slot in changed:
            before = {f.name: getattr(stages[slot], f.name) for f in fields(stages[slot])}
            part = changed[slot]
            unset = [f.name for f in fields(part) if getattr(part, f.name) is None and before.get(f.name) is not None]
            changed[slot] = replace(part, **{name: before[name] for name in unset})
    return {**stages, **changed}
