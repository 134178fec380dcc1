"""The learning loop: collect - score - store - credit - minibatches - step, the same for every method, policy and task."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from anypo.errors import RunError
from anypo.loops.run import Run, append, dump, write_checkpoint
from anypo.loops.update import VIEWS, evaluate, first_nonfinite, gradient, minibatches
from anypo.parts.statistics import group_stats, index_groups, masked_mean
from anypo.policies.anchor import applied
from anypo.types import Trajectories

PATIENCE = 5
"""Updates in a row that may be skipped for numbers that are not finite before the run stops."""

TOLERANCE = 0.02
"""Nats per decision by which sampling and evaluation may differ (bfloat16 rounding) before somebody is told."""

Watch = Callable[[dict[str, Any]], None]


def learn(run: Run, watch: Watch = lambda record: None) -> dict[str, Any]:
    """Train until the run's length or its target is reached; returns the last record.

    Every batch is one line in metrics.jsonl (and one call of `watch`); wall-clock times go to timing.jsonl, so that
    equal seeds give equal metrics.
    """
    record: dict[str, Any] = {}
    if run.batch == 0:
        record = {"batch": 0, "done": 0, **held_out(run)}
        report(run, record, watch)
        write_checkpoint(run)
    while not run.finished:
        clock = time.perf_counter()
        rows, metrics = collect(run)
        sampled = time.perf_counter()
        run.store.add(rows)
        batch = run.method.prepare(with_views(run, run.store.draw(run.generator)))
        metrics |= describe(run, batch) | {"mismatch": mismatch(run, batch)} | update(run, batch)
        run.policy.observe(batch)
        run.batch += 1
        before, run.done = run.done, run.done + (1 if run.task.unit == "batches" else int(metrics["env_steps"]))
        run.stepper.progress = min(1.0, run.done / run.steps)
        run.method.update("batch", metrics, run.stepper.progress, batch)
        updated = time.perf_counter()
        run.finished = run.done >= run.steps
        record = {"batch": run.batch, "done": run.done, **metrics}
        if run.finished or due(run, before, run.config.evaluate_every):
            record |= held_out(run)
        if run.config.target is not None and record.get(f"eval/{run.task.metric}", -math.inf) >= run.config.target:
            run.finished = True
        report(run, record, watch)
        seconds = {"rollout": sampled - clock, "update": updated - sampled, "rest": time.perf_counter() - updated}
        append(run, "timing.jsonl", {"batch": run.batch, **seconds})
        if run.finished or due(run, before, run.config.checkpoint_every):
            write_checkpoint(run)
    return record


def collect(run: Run) -> tuple[Trajectories, dict[str, float]]:
    """Drive the collect stage: answer its requests with scored rows, numbering the groups, until it returns the batch."""
    conversation = run.method.stages["collect"](run.pool, run.want)
    requests = next(conversation)
    offset, totals = 0, {}
    while True:
        with torch.no_grad(), autocast(run):
            rows, metrics = run.task.rollout(run.policy, requests, run.generator)
        assert rows.group is not None
        groups = index_groups(rows.group)[0] + offset
        offset = int(groups.max()) + 1
        for name, value in metrics.items():
            totals.setdefault(name, []).append(value)
        try:
            requests = conversation.send(rows.but(group=groups))
        except StopIteration as finished:
            means = {name: sum(values) / len(values) for name, values in totals.items()}
            counts = {name: sum(totals[name]) for name in ("env_steps", "tokens") if name in totals}
            return finished.value, {**means, **counts}


def with_views(run: Run, rows: Trajectories) -> Trajectories:
    """The rows with what credit and the loss read about them and sampling did not keep: values, reference log-probs."""
    early = run.method.reads("score", "credit") & VIEWS
    missing = {name for name in early if rows.get(name) is None}
    with autocast(run):
        if missing:
            rows = rows.but(**evaluate(run.policy, rows, missing, run.config.micro))
        if "ref" in run.anchors:
            with applied(run.policy, run.anchors["ref"]):
                rows = rows.but(logp_ref=evaluate(run.policy, rows, {"logp"}, run.config.micro)["logp"])
    return rows


def update(run: Run, batch: Trajectories) -> dict[str, float]:
    """All epochs and minibatches of one batch; returns the mean of every metric over the updates made."""
    recipe = run.method.stages["step"]
    totals: dict[str, list[float]] = {}
    if not bool(batch.valid.any()):
        return {"updates": 0.0}
    skipped = 0
    before = None if run.batch else [p.detach().clone() for p in run.policy.parameters() if p.requires_grad]
    for _ in range(recipe.epochs or 1):
        for part in minibatches(batch, run.method, run.policy.independent, recipe.minibatch, run.generator):

            def closure(part: Trajectories = part) -> dict[str, Any]:
                with autocast(run):
                    return gradient(run.method, run.policy, part, run.config.micro)

            metrics = run.stepper.update(closure)
            if metrics["skipped"]:
                skipped += 1
                cause = first_nonfinite(part, metrics)
                path = dump(run, part, cause)
                if skipped >= PATIENCE:
                    raise RunError(
                        f"{skipped} updates in a row were not finite: {cause} is the first bad tensor; the batch is in {path},"
                        " the last healthy checkpoint is untouched"
                    )
            else:
                skipped = 0
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
    if before is not None:
        moved = any(
            not torch.equal(b, p)
            for b, p in zip(before, (p for p in run.policy.parameters() if p.requires_grad), strict=True)
        )
        if not moved and max(totals["grad_norm"]) > 0 and max(totals["lr"]) > 0:
            raise RunError(
                "no trainable parameter changed in the first update although neither gradient nor learning rate is zero"
            )
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "skipped": sum(totals["skipped"]), "updates": float(len(totals["loss"]))}


def describe(run: Run, batch: Trajectories) -> dict[str, float]:
    """What the batch looks like before the update: size, and the share of groups that teach nothing."""
    found = {"rows": float(batch.shape[0]), "decisions": float(batch.valid.sum())}
    if run.method.traits["grouped"] and batch.score is not None and batch.group is not None:
        std = group_stats(batch.score, batch.group)[2]
        index, groups = index_groups(batch.group)
        dead = torch.zeros(groups, device=index.device).index_fill_(0, index[std == 0], 1.0)
        found["dead_groups"] = float(dead.mean())
    if batch.advantage is not None:
        found["advantage_std"] = (
            float(batch.advantage[batch.valid].std(correction=0)) if bool(batch.valid.any()) else 0.0
        )
    return found


def mismatch(run: Run, batch: Trajectories, rows: int = 8) -> float:
    """Mean |log pi - log pi_old| (nats) over the decisions of a few rows before the update: 0 up to rounding, as nothing
    has changed since sampling. More than that is a mistake in the policy, and is said once."""
    some = batch.rows(torch.arange(min(rows, batch.shape[0])))
    assert some.logp_old is not None
    with autocast(run):
        gap = evaluate(run.policy, some, {"logp"}, run.config.micro)["logp"] - some.logp_old
    found = float(masked_mean(gap.abs(), some.valid))
    if run.batch == 0 and found > TOLERANCE:
        warnings.warn(
            f"sampling and evaluation disagree by {found:.2g} nats per decision before any update; likely causes: another"
            " temperature, top-k or top-p on one side, dropout, bfloat16 (--autocast off), or a truncated input",
            stacklevel=2,
        )
    return found


def held_out(run: Run) -> dict[str, float]:
    """The task's measures on held-out starts, greedy, with randomness of its own so that training is not disturbed."""
    with torch.no_grad(), autocast(run):
        found = run.task.evaluate(run.policy, torch.Generator().manual_seed(run.config.seed), run.config.episodes)
    return {f"eval/{name}": float(value) for name, value in found.items()}


def report(run: Run, record: dict[str, Any], watch: Watch) -> None:
    append(run, "metrics.jsonl", record)
    watch(record)


def autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast of the network where it is wanted and the hardware has it."""
    device = next(run.policy.parameters()).device.type
    capable = device == "cuda" and torch.cuda.is_bf16_supported()
    if run.config.autocast == "on" or (run.config.autocast == "auto" and capable):
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


def due(run: Run, before: int, every: int | None) -> bool:
    """Whether something done every so many batches, or else ten times a run, is due after this batch."""
    if every is not None:
        return run.batch % every == 0
    return 10 * run.done // run.steps > 10 * before // run.steps
