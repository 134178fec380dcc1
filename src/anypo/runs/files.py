"""Files of a run's folder, written atomically."""

from __future__ import annotations

import json
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from anypo.runs.run import Run


def append(run: Run, name: str, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file of the run.

    Args:
        run: without a folder nothing is written.
        name: of the file.
        record: what the line holds.
    """
    if run.folder is not None:
        with (run.folder / name).open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def rewind(run: Run, name: str) -> None:
    """Drop the lines of batches after the checkpoint: they will be made again."""
    if run.folder is None or not (path := run.folder / name).exists():
        return
    complete = [text for text in path.read_text().splitlines() if text.endswith("}")]
    write_text(path, "".join(text + "\n" for text in complete if json.loads(text)["batch"] <= run.batch))


def dump(run: Run, batch: Any, what: str) -> Path | None:
    """Save a batch that led to numbers that are not finite; return its path.

    Args:
        run: without a folder nothing is written.
        batch: the minibatch.
        what: the first bad tensor.
    """
    if run.folder is None:
        return None
    path = run.folder / "nonfinite" / f"batch-{run.batch:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    torch.save({"cause": what, **tensors}, path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename, so that a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


def keep_traceback(run: Run, error: BaseException) -> None:
    """Write where an error that ended the run came from to traceback.txt, where it has a cause."""
    if run.folder is not None and error.__cause__ is not None:
        write_text(run.folder / "traceback.txt", "".join(traceback.format_exception(error.__cause__)))
