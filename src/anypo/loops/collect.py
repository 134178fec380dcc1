"""Drive the collect stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anypo.errors import UsageError
from anypo.loops.precision import autocast
from anypo.parts.ops.groups import index_groups
from anypo.protocols import HasDemonstrations
from anypo.runs.run import Run
from anypo.types import Request, Trajectories


@dataclass(frozen=True)
class Rollout:
    """What one batch collected: its rows, and the metrics of collecting them; no rows where the method asks for none."""

    rows: Trajectories | None
    metrics: dict[str, float]


def collect(run: Run) -> Rollout:
    """Drive the collect stage of the present phase: answer its requests with scored rows, numbering the groups, until it
    returns the batch."""
    conversation = run.phase.stages["collect"](run.pool, run.want)
    requests = next(conversation, None)
    if requests is None:
        return Rollout(None, {})
    offset, totals = 0, {}
    while True:
        requests = run.pool.number(requests)
        rows, metrics = answer(run, requests)
        for name, value in metrics.items():
            totals.setdefault(name, []).append(value)
        groups = rows.need("group") + offset
        offset = int(groups.max()) + 1
        try:
            requests = conversation.send(rows.but(group=groups))
        except StopIteration as finished:
            means = {name: sum(values) / len(values) for name, values in totals.items()}
            counts = {name: sum(totals[name]) for name in ("env_steps", "tokens") if name in totals}
            return Rollout(finished.value, {**means, **counts})


def answer(run: Run, requests: list[Request]) -> tuple[Trajectories, dict[str, float]]:
    """Rows for requests, their groups numbered from 0 in the order of the requests, and the metrics of the rollout."""
    with torch.no_grad(), autocast(run):
        if requests[0].expert:
            rows, metrics = demonstrate(run, requests), {}
        else:
            rows, metrics = run.task.rollout(run.policy, requests, run.config.seed)
    index, count = index_groups(rows.need("group"))
    if count == len(requests) and requests[0].start is not None:
        rows = rows.but(start=torch.tensor([r.start for r in requests], device=index.device)[index])
    return rows.but(group=index), metrics


def demonstrate(run: Run, requests: list[Request]) -> Trajectories:
    """Return the task's own answers to requests for demonstrations."""
    if not isinstance(run.task, HasDemonstrations):
        raise UsageError(
            f"the method {run.method.card.id} learns from demonstrations, and the task {run.task.name} has none"
        )
    return run.task.demonstrate(run.policy, requests)
