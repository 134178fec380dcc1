"""What a run prints: its plan, live progress (a bar in a terminal, else one line per evaluation), and one closing line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anypo.report.plan import lines
from anypo.runs.run import Run

Watch = Callable[[dict[str, Any]], None]
SHOWN = ("reward", "train/return", "train/reward", "ratio", "kl_ref", "entropy", "dead_groups", "grad_norm")
"""Metrics worth a glance while a run goes on, where it has them."""


def plan(run: Run, out: Console) -> None:
    """Print what is going to happen."""
    for label, text in lines(run):
        out.print(f"[bold]{label:8}[/bold] {escape(text)}", highlight=False)


@contextmanager
def progress(run: Run, out: Console) -> Iterator[Watch]:
    """Inside, the yielded function shows one metrics record."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, *times, console=out, disable=not out.is_terminal)
    line = bar.add_task(run.task.unit, total=run.steps, completed=run.done, text="")
    metric = f"eval/{run.task.metric}"

    def watch(record: dict[str, Any]) -> None:
        shown = {name: record[name] for name in (metric, *SHOWN) if name in record}
        text = "  ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in shown.items())
        bar.update(line, completed=record["done"], text=text)
        if metric in record:
            out.print(f"{record['done']:>9,} {text}", highlight=False)

    with bar:
        yield watch


def finish(run: Run) -> str:
    """Save a language model where transformers finds it, write result.json; returns the closing line."""
    assert run.folder is not None
    if hasattr(run.policy, "save"):
        run.policy.save(run.folder / "model")
    metric = f"eval/{run.task.metric}"
    measured = [r[metric] for r in records(run.folder) if metric in r]
    result = {"metric": run.task.metric, "before": measured[0], "after": measured[-1], "done": run.done}
    (run.folder / "result.json").write_text(json.dumps(result) + "\n")
    return summary(run.folder, result)


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_of(folder: Path) -> dict[str, Any] | None:
    """What a finished run reached; None while it is not finished."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def summary(folder: Path, result: dict[str, Any]) -> str:
    return f"{folder}  {result['metric']} {result['before']:.4g} -> {result['after']:.4g}"
