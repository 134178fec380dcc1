"""Files of a run's folder, written atomically."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from anypo.runs.run import Run

DUMPS = 3
"""Batches kept of those that led to numbers that are not finite."""


def append(run: Run, name: str, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file of the run.

    Args:
        run: without a folder nothing is written.
        name: of the file.
        record: what the line holds.
    """
    if run.folder is not None:
        with (run.folder / name).open("a") as handle:
            handle.write(json.dumps({name: finite_or_none(value) for name, value in record.items()}) + "\n")


def finite_or_none(value: Any) -> Any:
    """Return None for NaN and infinities, which JSON does not have; anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewind(run: Run, name: str) -> None:
    """Drop the lines of batches after the checkpoint: they will be made again."""
    if run.folder is None or not (path := run.folder / name).exists():
        return
    complete = [text for text in path.read_text().splitlines() if text.endswith("}")]
    write_text(path, "".join(text + "\n" for text in complete if json.loads(text)["batch"] <= run.batch))


def dump(run: Run, batch: Any, what: str) -> Path | None:
    """Save a batch that led to numbers that are not finite, unless the run has `DUMPS` already; return the newest one's path.

    Args:
        run: without a folder nothing is written.
        batch: the minibatch.
        what: the first bad tensor.
    """
    if run.folder is None:
        return None
    path = run.folder / "nonfinite" / f"batch-{run.batch:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    kept = sorted(path.parent.glob("batch-*.pt"))
    if len(kept) >= DUMPS:
        return kept[-1]
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    torch.save({"cause": what, **tensors}, path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename, so that a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
