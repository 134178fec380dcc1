"""Learn from one batch: store, credit, updates, knobs."""

from __future__ import annotations

from anypo.loops.anchors import refresh
from anypo.loops.collect import Rollout
from anypo.loops.compiled_update import Traces
from anypo.loops.diagnostics import DIAGNOSTICS, Observer, merge_metrics
from anypo.loops.update import update
from anypo.loops.views import attach_noise, compute_views, with_views
from anypo.method.method import Method
from anypo.runs.run import Run
from anypo.types import Trajectories

Metrics = dict[str, float]


def absorb(run: Run, rollout: Rollout, observers: tuple[Observer, ...] = DIAGNOSTICS) -> Metrics:
    """Store the rows of a rollout, make the updates that are due, move the knobs; return the batch's metrics.

    Args:
        run: whose phase has begun (`begin_phase`).
        rollout: rows and metrics; no rows where the method collects none.
        observers: shown the first rows drawn, before and after they are prepared, and the metrics of the batch.
    """
    method, batch, metrics = run.phase, rollout.rows, dict(rollout.metrics)
    if batch is not None:
        run.pool.decisions += int(batch.valid.sum())
        run.store.add(batch)
    draws = run.store.draws()
    if draws:
        batch, first = learn_first(run, method, metrics, observers)
        updates = [first]
        for _ in range(draws - 1):
            batch, again = learn_again(run, method)
            updates.append(again)
        metrics |= merge_metrics(updates)
        for observer in observers:
            observer.updated(run, metrics)
        run.policy.observe(batch)
        refresh(run, late=True)
    else:
        metrics |= merge_metrics([])
    run.advance(metrics)
    if batch is not None:
        method.update("batch", metrics, run.stepper.progress, batch)
    return metrics


def learn_first(
    run: Run, method: Method, metrics: Metrics, observers: tuple[Observer, ...]
) -> tuple[Trajectories, Metrics]:
    """Update from the first rows drawn; anchors are refreshed between their views and the update.

    Args:
        run: its store has rows.
        method: the present phase.
        metrics: of the rollout; what observers measure is added.
        observers: shown the rows as drawn and as prepared.
    """
    rows = run.store.draw(run.generator)
    for observer in observers:
        metrics |= observer.drawn(run, rows)
    batch = method.prepare(with_views(run, method, rows))
    for observer in observers:
        metrics |= observer.prepared(run, batch)
    refresh(run)
    return batch, update(run, method, batch)


def learn_again(run: Run, method: Method) -> tuple[Trajectories, Metrics]:
    """Update from further rows drawn, replaying a trace where there is one."""
    drawn = run.store.draw(run.generator)
    rows = attach_noise(run.policy, drawn, method.views | method.live, run.generator)
    if replay := Traces.of(run).of_rows(run, method, rows):
        return rows, update(run, method, rows, replay)
    return rows, update(run, method, method.prepare(compute_views(run, method, rows)))
