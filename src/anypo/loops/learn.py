"""The learning loop: collect - score - store - credit - minibatches - step, the same for every method, policy and task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from anypo.loops.anchors import refresh
from anypo.loops.collect import collect
from anypo.loops.compiled_update import recording
from anypo.loops.diagnostics import (
    describe_batch,
    first_loss_is_on_policy,
    merge_metrics,
    sampled_mismatch,
    warn_of_mismatch,
)
from anypo.loops.evaluate import held_out
from anypo.loops.precision import precision
from anypo.loops.update import replay_loss, update
from anypo.loops.views import attach_noise, compute_views
from anypo.runs.checkpoint import write_checkpoint
from anypo.runs.files import append
from anypo.runs.run import Run

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
        method, run.pool.batches = run.enter(), run.batch + 1
        with run.stepper.ahead():
            batch, metrics = collect(run, method)
            sampled = time.perf_counter()
            if batch is not None:
                run.pool.decisions += int(batch.valid.sum())
                run.store.add(batch)
            made: list[dict[str, float]] = []
            for draw in range(run.store.draws()):
                batch = run.store.draw(run.generator)
                if draw == 0 and batch.logp_old is not None and not first_loss_is_on_policy(run, method):
                    metrics["mismatch"] = sampled_mismatch(run, batch)
                batch = attach_noise(run.policy, batch, method.views | method.live, run.generator)
                # what is told of a batch, and what renews anchors, comes between its views and its update
                if draw == 0:
                    batch = method.prepare(compute_views(run, method, batch))
                    metrics |= describe_batch(method, batch)
                    refresh(run)
                    made.append(update(run, method, batch))
                elif replay := recording(run, method, batch, replay_loss):
                    made.append(update(run, method, batch, replay))
                else:
                    made.append(update(run, method, method.prepare(compute_views(run, method, batch))))
            metrics |= merge_metrics(made)
            if run.batch == 0 and "mismatch" in metrics:
                warn_of_mismatch(metrics["mismatch"], precision(run))
        if batch is not None and made:
            run.policy.observe(batch)
        run.batch += 1
        lasted = {"batches": 1.0, "environment steps": metrics.get("env_steps"), "updates": metrics["updates"]}
        before, run.done = run.done, run.done + int(lasted[run.task.unit] or 0)
        run.stepper.progress = min(1.0, run.done / run.steps)
        if batch is not None:
            method.update("batch", metrics, run.stepper.progress, batch)
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


def report(run: Run, record: dict[str, Any], watch: Watch) -> None:
    append(run, "metrics.jsonl", record)
    watch(record)


def due(run: Run, before: int, every: int | None) -> bool:
    """Whether something done every so many batches, or else ten times a run, is due after this batch."""
    if every is not None:
        return run.batch % every == 0
    return 10 * run.done // run.steps > 10 * before // run.steps
