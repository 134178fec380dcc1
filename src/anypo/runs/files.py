"""Files of a run's folder: written beside and renamed, so that a kill leaves the old content or the new one, and read with
their digest."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anypo.errors import RunError, UsageError
from anypo.runs.run import Run

MANIFEST = "manifest.json"
"""Lists the digests of the files beside it."""
SEAL = "sha256"
"""Key of a record's own digest."""
DUMPS = 3
"""Batches kept of those that led to numbers that are not finite."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """End the run in one sentence where its folder cannot be written, because the disk is full or read-only."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write to {folder}: {reason}; mend that and go on with `anypo resume {folder}`"
        ) from None


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path) -> None:
    """Force a file to the disk, readable as the umask has it: safetensors writes files that others cannot read."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    sync(path)


def sync_tree(folder: Path) -> None:
    """Force a folder with all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        (publish if path.is_file() else sync)(path)


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename, so that a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Put a folder in the place of another, with all that is in it on the disk."""
    sync_tree(source)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    return {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def seal(record: dict[str, Any]) -> str:
    """SHA-256 of a record without the seal."""
    plain = {key: value for key, value in record.items() if key != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON that carries its own digest."""
    write_text(path, json.dumps(record | {SEAL: seal(record)}, indent=1) + "\n")


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Args:
        path: of the file.
        remedy: what to do where it is missing or damaged, for the sentence.

    Raises:
        UsageError: there is no such file, or it was changed.
    """
    record: dict[str, Any] = {}
    try:
        record = json.loads(path.read_bytes())
        intact = record[SEAL] == seal(record)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}; {remedy}") from None
    except (OSError, ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise UsageError(f"{path} is damaged; {remedy}")
    return record


def write_tensors(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as safetensors; `publish` brings them to the disk."""
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path)


def read_tensors(path: Path, expected: str, remedy: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read weights whose file must have a digest.

    Args:
        path: of the file.
        expected: its digest.
        remedy: what to do where it is missing or damaged, for the sentence.
        device: where the weights go.

    Raises:
        UsageError: there is no such file, or it was changed.
    """
    check_digest(path, expected, remedy)
    return load_file(path, device=device)


def check_digest(path: Path, expected: str, remedy: str) -> None:
    """Refuse a file that is missing or was changed.

    Args:
        path: of the file.
        expected: its digest.
        remedy: what to do about it, for the sentence.
    """
    try:
        intact = file_digest(path) == expected
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    if not intact:
        raise UsageError(f"{path} is damaged or truncated; {remedy}")


def append(run: Run, name: str, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file of the run; a number that is not finite is null there.

    Args:
        run: without a folder nothing is written.
        name: of the file.
        record: what the line holds.
    """
    if run.folder is None:
        return
    plain = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
    with writing(run.folder), (run.folder / name).open("a") as handle:
        handle.write(json.dumps(plain, allow_nan=False) + "\n")


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


def keep_traceback(run: Run, error: BaseException) -> None:
    """Write where an error that ended the run came from to traceback.txt, where it has a cause; a run that has not begun leaves nothing."""
    if run.folder is not None and run.begun and error.__cause__ is not None:
        write_text(run.folder / "traceback.txt", "".join(traceback.format_exception(error.__cause__)))
