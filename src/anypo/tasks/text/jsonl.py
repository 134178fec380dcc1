"""Text tasks from a file: one object per line or row, with a `prompt` and whatever columns the rewards need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from anypo.errors import UsageError
from anypo.policies.language.text import check_whole
from anypo.ranges import Count, Finite, Inner, Range
from anypo.tasks.text.rewards import make_rewards
from anypo.tasks.text.tables import read_table_rows
from anypo.tasks.text.task import Record, TextTask, is_prompt


def load_records(path: str | Path) -> list[Record]:
    """Read the records of a JSONL file, each with its line number (blank lines are skipped), of a Parquet file or of a folder written
    by `datasets.save_to_disk`.

    `prompt` is text or a list of chat messages `{"role": ..., "content": ...}`. Raises UsageError naming file and line.
    """
    path = Path(path)
    if path.is_dir() or (path.suffix == ".parquet" and path.exists()):
        return [check_record(row, f"{path} row {i}") for i, row in enumerate(read_table_rows(path))]
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a JSONL file with a `prompt` on every line")
    records = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        if text.strip():
            records.append(_record(text, f"{path} line {number}"))
    if not records:
        raise UsageError(f"{path} is empty; it needs at least one line with a `prompt`")
    return records


def _record(text: bytes, where: str) -> Record:
    try:
        row = json.loads(text)
    except ValueError as error:  # neither JSON nor UTF-8
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is a {type(row).__name__}; every line must be an object with a `prompt`")
    return check_record(row, where)


def check_record(row: dict[str, Any], where: str) -> Record:
    """Return a row as a record that knows where it comes from; UsageError unless it has a usable prompt and whole texts."""
    if not is_prompt(row.get("prompt")):
        raise UsageError(f'{where} needs a `prompt`: text, or a list of {{"role": ..., "content": ...}} messages')
    for name, value in row.items():
        for part in texts_in(value):
            check_whole(part, f"{where} in its {name}")
    record = Record(row)
    record.where = where
    return record


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def split(records: Sequence[Record], heldout: float) -> tuple[list[Record], list[Record]]:
    """Split into (training, held-out) records: the share `heldout` of the distinct prompts with the smallest hash is held out, so
    the split depends on the prompts alone, and equal prompts stay together."""
    keys = [hashlib.blake2b(json.dumps(r["prompt"], sort_keys=True).encode()).digest() for r in records]
    distinct = sorted(set(keys))
    out = set(distinct[: max(1, round(heldout * len(distinct)))])
    return (
        [r for r, key in zip(records, keys, strict=True) if key not in out],
        [r for r, key in zip(records, keys, strict=True) if key in out],
    )


def divide(
    path: str | Path, records: list[Record], heldout: float | str | Path, read: Callable[[str | Path], list[Record]]
) -> tuple[list[Record], list[Record]]:
    """Divide into (training, held-out) records.

    Args:
        path: where the records come from, for messages.
        records: all records of the file.
        heldout: the share of the prompts that is held out, or a second file with the held-out records.
        read: reads a file.

    Raises:
        UsageError: the share is none, or nothing is left to train on.
    """
    if not isinstance(heldout, (int, float)):
        return records, read(heldout)
    if not 0 < heldout < 1:
        raise UsageError(f"heldout must be a share between 0 and 1 or a file, not {heldout}")
    training, held = split(records, heldout)
    if not training:
        raise UsageError(f"{path} has a single prompt, so none can be held out; set heldout to a file with others")
    return training, held


def make_jsonl_task(
    path: str | Path,
    reward: Any = None,
    *,
    heldout: Inner[float] | str | Path = 0.1,
    weights: Sequence[Finite[float]] | None = None,
    max_new: Count[int] | None = None,
    timeout: Annotated[float, Range(above=0, most=1_000_000)] = 60.0,
    on_error: Literal["raise", "drop"] | Finite[float] = "raise",
    concurrency: Annotated[int, Range(least=1, most=1024)] = 8,
) -> TextTask:
    """Make the task of a JSONL file.

    Args:
        path: the file.
        reward: anything `make_reward` takes, or a list of such; required.
        heldout: share of the prompts kept for evaluation, or a file that holds them.
        weights: of the rewards in the score (default 1 each).
        max_new: tokens per completion.
        timeout, on_error, concurrency: of reward functions, see `rewards.Reward`.

    Raises:
        UsageError: there is no reward, or the file is no such data set.
    """
    rewards = make_rewards(reward, timeout=timeout, on_error=on_error, concurrency=concurrency)
    if not rewards:
        raise UsageError("a jsonl task needs a reward: --reward FILE.py:FUNCTION, or exact, numeric, math, regex")
    records, held = divide(path, load_records(path), heldout, load_records)
    return TextTask(f"jsonl:{path}", records, held, rewards, weights=weights, max_new=max_new, source=str(path))


def make_rows_task(
    rows: Sequence[dict[str, Any]],
    reward: Any = None,
    *,
    heldout: float | Sequence[dict[str, Any]] = 0.1,
    weights: Sequence[float] | None = None,
    max_new: int | None = None,
    timeout: float = 60.0,
    on_error: str | float = "raise",
    concurrency: int = 8,
) -> TextTask:
    """Make the task of rows given from Python.

    Args:
        rows: dictionaries with a `prompt` and the columns that the rewards need.
        reward, weights, max_new, timeout, on_error, concurrency: as for a file.
        heldout: share of the prompts kept for evaluation, or further rows.
    """
    rewards = make_rewards(reward, timeout=timeout, on_error=on_error, concurrency=concurrency)
    records = [check_record(dict(row), f"row {i}") for i, row in enumerate(rows)]
    if isinstance(heldout, (int, float)):
        records, held = divide("rows", records, heldout, load_records)
    else:
        held = [check_record(dict(row), f"held-out row {i}") for i, row in enumerate(heldout)]
    return TextTask("object:rows", records, held, rewards, weights=weights, max_new=max_new, source="rows")
