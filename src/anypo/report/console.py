"""The plan before a run, its progress, and its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from anypo.errors import UsageError
from anypo.loops.checks import batch_size, batches, notes, updates_per_batch
from anypo.loops.run import Run
from anypo.policies.anchor import moving

RESULT = "result.json"
SHOWN = ("reward", "train/return", "kl_old", "grad_norm")
"""Metrics shown beside the bar while a run goes on."""


def plan(run: Run, console: Console) -> None:
    """Print what the run is going to do, and which of its settings cannot act."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in plan_rows(run):
        table.add_row(name, text, style=None)
    console.print(table)
    for note in notes(run):
        console.print(f"note  {note}", style="yellow", markup=False, highlight=False)


def plan_rows(run: Run) -> Iterator[tuple[str, str]]:
    """(name, text) of every line of the plan."""
    task, policy, step = run.task, run.policy, run.method.stages["step"]
    rows, decisions = batch_size(run)
    what = "tokens" if hasattr(task, "records") else "decisions"
    changed = f" ({', '.join(run.method.changed)} changed from {base})" if (base := run.method.card.base) else ""
    yield "method", f"{run.config.method}{changed}"
    heldout = f", {len(task.heldout)} held out" if hasattr(task, "heldout") else ""
    yield "task", f"{task.name}: {task.starts if task.starts is not None else 'unlimited'} starts{heldout}"
    total = sum(p.numel() for p in policy.parameters())
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    yield "policy", f"{run.config.policy['name']}: {total:,} parameters, {trainable:,} trained"
    yield (
        "batch",
        f"{run.want.requests} prompts x {run.want.samples} samples = {rows} rows, {decisions:,} {what} at most",
    )
    yield (
        "updates",
        f"{updates_per_batch(run)} per batch ({step.epochs or 1} epochs, minibatch {step.minibatch or 'all'})",
    )
    least = "" if task.unit == "batches" else f"{run.steps:,} environment steps, at least "
    yield "length", f"{least}{batches(run):,} batches"
    yield "memory", memory(run)
    yield "folder", str(run.folder)


def memory(run: Run) -> str:
    """Estimate in MB: weights, gradients, Adam's two moments, reference copy, activations of one micro-batch."""
    parameters = list(run.policy.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    gradients = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    reference = sum(t.numel() * t.element_size() for t in moving(run.policy).values()) if run.anchors else 0
    decisions = min(run.config.micro, batch_size(run)[1])
    width = sum(p.shape[0] for p in parameters if p.ndim == 2)  # outputs of every layer, per decision
    activations = 4 * decisions * width
    pieces = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 2 * gradients,
        "reference": reference,
        "activations": activations,
    }
    listed = ", ".join(f"{name} {size / 2**20:.3g}" for name, size in pieces.items() if size)
    return f"about {sum(pieces.values()) / 2**20:,.0f} MB ({listed})"


@contextmanager
def progress(run: Run, console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What watches a run: a live bar in a terminal, one line per evaluation elsewhere."""

    def line(record: dict[str, Any]) -> None:
        if f"eval/{run.task.metric}" in record:
            console.print(evaluation(run, record), highlight=False, markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("", total=run.steps, completed=run.done)

        def watch(record: dict[str, Any]) -> None:
            shown = "  ".join(f"{name} {record[name]:.3g}" for name in SHOWN if name in record)
            bars.update(bar, completed=min(record["done"], run.steps), description=shown)
            line(record)

        yield watch


def evaluation(run: Run, record: dict[str, Any]) -> str:
    """One evaluation as a line."""
    shown = {f"eval/{run.task.metric}": run.task.metric, **{name: name for name in SHOWN}}
    values = "  ".join(f"{label} {record[name]:.4g}" for name, label in shown.items() if name in record)
    return f"batch {record['batch']}  {record['done']:,}/{run.steps:,} {run.task.unit}  {values}"


def finish(run: Run) -> str:
    """Save a trained language model for transformers, write result.json, and return the run's last line."""
    assert run.folder is not None
    if hasattr(run.policy, "save"):
        run.policy.save(run.folder / "model")
    name = f"eval/{run.task.metric}"
    measured = [record for record in history(run.folder) if name in record]
    first, last = measured[0], measured[-1]
    result = {"metric": run.task.metric, "before": first[name], "after": last[name]}
    result |= {"batch": last["batch"], "done": last["done"]}
    (run.folder / RESULT).write_text(json.dumps(result) + "\n")
    return summary(run.folder, result)


def summary(folder: Path, result: dict[str, Any]) -> str:
    """`runs/grpo-sums-0  accuracy 0.428 -> 0.934`"""
    return f"{folder}  {result['metric']} {result['before']:.3f} -> {result['after']:.3f}"


def result_of(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None while it is not finished."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise UsageError(f"{folder} holds no run: there is no metrics.jsonl in it")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
