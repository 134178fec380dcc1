"""The learning loop: collect - score - store - credit - minibatches - step, the same for every method, policy and task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from anypo.loops.absorb import absorb
from anypo.loops.collect import collect
from anypo.loops.evaluate import held_out
from anypo.loops.finite import count_missing, require_finite, require_measure
from anypo.runs.checkpoint import METRICS, TIMING, write_checkpoint
from anypo.runs.files import append
from anypo.runs.phases import begin_phase, watch_phases
from anypo.runs.run import Run

BatchRecord = dict[str, Any]
"""The metrics of one batch."""
Watch = Callable[[BatchRecord], None]


def learn(run: Run, watch: Watch = lambda record: None) -> BatchRecord:
    """Train until the run's length or its target is reached; return the last record.

    Every batch is one line in metrics.jsonl (and one call of `watch`); wall-clock times go to timing.jsonl, so that
    equal seeds give equal metrics.
    """
    record = {} if run.begun else begin(run, watch)
    while not run.finished:
        clock = [time.perf_counter()]
        begin_phase(run)
        with run.stepper.lookahead():
            rollout = collect(run)
            clock.append(time.perf_counter())
            metrics = absorb(run, rollout)
        clock.append(time.perf_counter())
        record = settle(run, metrics, clock, watch)
    return record


def begin(run: Run, watch: Watch) -> BatchRecord:
    """Record the held-out measures of the untrained policy and write the first checkpoint."""
    require_finite(run)
    measures = held_out(run)
    require_measure(run, measures)
    record = {"batch": 0, "done": 0, **measures}
    report(run, record, watch)
    write_checkpoint(run, measure_in(run, record))
    run.begun = True
    return record


def settle(run: Run, metrics: dict[str, float], clock: list[float], watch: Watch) -> BatchRecord:
    """Evaluate and write a checkpoint where they are due; record the batch.

    Args:
        run: the run after a batch was absorbed.
        metrics: of the batch.
        clock: seconds at the start of the batch, after its rollout and after its update.
        watch: called with the record.
    """
    record = {"batch": run.batch, "done": run.done, **metrics}
    count_missing(run, metrics)
    evaluated = run.finished or due(run, run.config.evaluate_every)
    if evaluated or due(run, run.config.checkpoint_every):
        require_finite(run)
    if evaluated:
        record |= held_out(run)
    if run.finished:
        require_measure(run, record)
    if run.config.target is not None and record.get(f"eval/{run.metric}", -math.inf) >= run.config.target:
        run.finished = True
    watch_phases(run, record)
    report(run, record, watch)
    start, sampled, updated = clock
    seconds = {"rollout": sampled - start, "update": updated - sampled, "rest": time.perf_counter() - updated}
    append(run, TIMING, {"batch": run.batch, **seconds})
    if run.finished or due(run, run.config.checkpoint_every):
        write_checkpoint(run, measure_in(run, record))
    return record


def measure_in(run: Run, record: BatchRecord) -> float | None:
    """Return the run's held-out measure in a record; None where it was not taken or is no number."""
    measure = record.get(f"eval/{run.metric}", math.nan)
    return measure if math.isfinite(measure) else None


def report(run: Run, record: BatchRecord, watch: Watch) -> None:
    """Append the record to metrics.jsonl and show it to `watch`.

    Args:
        run: whose folder holds the file; without a folder nothing is written.
        record: metrics of one batch.
        watch: called with the record.
    """
    append(run, METRICS, record)
    watch(record)


def due(run: Run, every: int | None) -> bool:
    """Whether something done every so many batches, or else ten times a run, is due after this batch."""
    if every is not None:
        return run.batch % every == 0
    return 10 * run.done // run.steps > 10 * run.before // run.steps
