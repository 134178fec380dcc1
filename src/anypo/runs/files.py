"""Files of a run's folder, written atomically."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from anypo.runs.run import Run


def append(run: Run, name: str, record: dict[str, Any]) -> None:
    """One line of JSON at the end of a file of the run."""
    if run.folder is not None:
        with (run.folder / name).open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def rewind(run: Run, name: str) -> None:
    """Drop the lines of batches after the checkpoint: they will be made again."""
    assert run.folder is not None
    path = run.folder / name
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["batch"] <= run.batch]
        write_text(path, "".join(line + "\n" for line in kept))


def dump(run: Run, batch: Any, what: str) -> Path | None:
    """Keep the batch that led to numbers that are not finite."""
    if run.folder is None:
        return None
    path = run.folder / "nonfinite" / f"batch-{run.batch:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    torch.save({"cause": what, **tensors}, path)
    return path


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
