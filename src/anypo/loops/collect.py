"""Drive the collect stage."""

from __future__ import annotations

import torch

from anypo.errors import UsageError
from anypo.loops.precision import autocast
from anypo.method.method import Method
from anypo.parts.ops.groups import index_groups
from anypo.runs.run import Run
from anypo.types import Request, Trajectories


def collect(run: Run, method: Method) -> tuple[Trajectories | None, dict[str, float]]:
    """Drive the collect stage: answer its requests with scored rows, numbering the groups, until it returns the batch;
    None where it asks for nothing."""
    conversation = method.stages["collect"](run.pool, run.want)
    requests = next(conversation, None)
    if requests is None:
        return None, {}
    offset, totals = 0, {}
    while True:
        with torch.no_grad(), autocast(run):
            if requests[0].expert:
                rows, metrics = demonstrate(run, requests), {}
            else:
                rows, metrics = run.task.rollout(run.policy, requests, run.generator)
        assert rows.group is not None
        index, count = index_groups(rows.group)
        if count == len(requests) and requests[0].start is not None:
            rows = rows.but(start=torch.tensor([r.start for r in requests], device=index.device)[index])
        groups = index + offset
        offset = int(groups.max()) + 1
        for name, value in metrics.items():
            totals.setdefault(name, []).append(value)
        try:
            requests = conversation.send(rows.but(group=groups))
        except StopIteration as finished:
            means = {name: sum(values) / len(values) for name, values in totals.items()}
            counts = {name: sum(totals[name]) for name in ("env_steps", "tokens") if name in totals}
            return finished.value, {**means, **counts}


def demonstrate(run: Run, requests: list[Request]) -> Trajectories:
    """The task's own answers to requests for demonstrations."""
    if not hasattr(run.task, "demonstrate"):
        raise UsageError(
            f"the method {run.method.card.id} learns from demonstrations, and the task {run.task.name} has none"
        )
    return run.task.demonstrate(run.policy, requests)
