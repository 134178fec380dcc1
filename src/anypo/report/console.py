"""Console output of a run: its plan, live progress (a bar in a terminal, else one line per evaluation), and one closing line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anypo.errors import UsageError
from anypo.loops.learn import Watch
from anypo.protocols import SavesModel
from anypo.report.plan import plan_lines
from anypo.runs.checkpoint import METRICS
from anypo.runs.files import MANIFEST, folder_digests, read_record, replace_folder, write_record, writing
from anypo.runs.run import Run

RESULT = "result.json"

SHOWN = ("reward", "train/return", "train/reward", "ratio", "kl_ref", "entropy", "dead_groups", "grad_norm")
"""Metrics shown during a run, where it has them."""


def plan(run: Run, out: Console) -> None:
    """Print the plan of a run."""
    for label, text in plan_lines(run):
        out.print(f"[bold]{label:8}[/bold] {escape(text)}", highlight=False)


@contextmanager
def progress(run: Run, out: Console) -> Iterator[Watch]:
    """Show progress while the context is open; the yielded function takes one metrics record."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, *times, console=out, disable=not out.is_terminal)
    bar_id = bar.add_task(run.task.unit, total=run.steps, completed=run.done, text="")
    metric = f"eval/{run.metric}"

    def watch(record: dict[str, Any]) -> None:
        shown = {name: record[name] for name in (metric, *SHOWN) if name in record}
        text = "  ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in shown.items())
        bar.update(bar_id, completed=record["done"], text=text)
        if metric in record:
            out.print(f"{record['done']:>9,} {text}", highlight=False)

    with bar:
        yield watch


def finish(run: Run) -> str:
    """Write result.json and, for a language model, `model/` as transformers loads it; release the folder and return the closing
    line."""
    if run.folder is None:
        raise UsageError("a run without a folder has nowhere to write its result")
    metric = f"eval/{run.metric}"
    measured = [r[metric] for r in records(run.folder) if metric in r]
    ends = {"metric": run.metric, "before": measured[0], "after": measured[-1]}
    result = {**ends, "done": run.done, "unit": run.task.unit}
    with writing(run.folder):
        if isinstance(run.policy, SavesModel):
            write_model(run.policy, run.folder)
        write_record(run.folder / RESULT, result)
    run.claim = None
    return closing_line(run.folder, result)


def write_model(policy: SavesModel, folder: Path) -> None:
    """Write `model/` with the digests of its files, in the place of an older one."""
    temporary = folder / ".model.new"
    shutil.rmtree(temporary, ignore_errors=True)
    policy.save(temporary)
    write_record(temporary / MANIFEST, {"files": folder_digests(temporary)})
    replace_folder(temporary, folder / "model")


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl."""
    path = folder / METRICS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        raise UsageError(f"{path} is missing or damaged; `anypo resume {folder}` goes on from a checkpoint") from None


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of result.json; None while the run is not finished."""
    path = folder / RESULT
    return read_record(path, f"delete it, and `anypo resume {folder}` writes it again") if path.exists() else None


def closing_line(folder: Path, result: dict[str, Any]) -> str:
    """Return the folder, and the held-out measure before and after."""
    before, after = ("nan" if result[end] is None else f"{result[end]:.4g}" for end in ("before", "after"))
    return f"{folder}  {result['metric']} {before} -> {after}"
