"""Rows of text data: read from files, folders and lists, checked, divided, and written as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from anypo.errors import UsageError
from anypo.policies.language.text import check_whole

Source = str | Path | Iterable[Any]
"""A JSONL or Parquet file, a folder written by `datasets.save_to_disk`, or rows in memory: a list or a `datasets.Dataset`."""

DEEPEST = 100
"""Lists and objects inside one another in a row."""


class Record(dict):
    """One row of a data set: `prompt` (text or chat messages) and further columns. `where` says where it was read."""

    where: str | None = None


def load_records(
    source: Source, check: Callable[[Record], Record] | None = None, form: str = "a `prompt`", row: str = "row"
) -> list[Record]:
    """Read all rows of a source as records that know where they come from; blank lines of a file are skipped.

    Args:
        source: the rows.
        check: of the columns beside `prompt`.
        form: what a row needs, for messages.
        row: what a row in memory is called in messages.

    Raises:
        UsageError: there is no such source, or a row, named by the message, is not of the form.
    """
    in_memory = not isinstance(source, str | Path)
    named = rows_in_memory(source, row) if in_memory else rows_of_file(Path(source), form)
    records = [check_record(content, where) for where, content in named]
    if not records:
        raise UsageError(f"{'the list' if in_memory else source} is empty; it needs at least one row with {form}")
    return records if check is None else [check(record) for record in records]


def rows_in_memory(rows: Any, row: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a list or a `datasets.Dataset` with their names."""
    table = hasattr(rows, "column_names")
    for i, content in enumerate(training_split(rows, "the data set") if table else rows):
        yield f"{row} {i}", drop_missing(content) if table else content


def rows_of_file(path: Path, form: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file or folder with their names.

    Args:
        path: a folder of `datasets`, a Parquet file, else one JSON object a line.
        form: what a row needs, for messages.
    """
    if path.is_dir() or path.suffix == ".parquet":
        for i, content in enumerate(read_text_table(path)):
            yield f"{path} row {i}", drop_missing(content)
        return
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}; give a JSONL or Parquet file, or a folder of `datasets`, with {form}"
        )
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        if text.strip():
            try:
                yield f"{path} line {number}", json.loads(text)
            except RecursionError:
                raise UsageError(f"{path} line {number} is nested too deeply") from None
            except ValueError as error:  # neither JSON nor UTF-8
                raise UsageError(f"{path} line {number} is not JSON: {error}") from error


def read_text_table(path: Path) -> Iterable[dict[str, Any]]:
    """Read a Parquet file, or a folder written by `datasets.save_to_disk`."""
    try:
        import pyarrow.parquet
        from datasets import load_from_disk
    except ImportError as error:
        raise UsageError(f'{path} needs the packages of `pip install "anypo[data]"`') from error
    if not path.is_dir():
        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        data = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"the folder {path} is no data set: {str(error).splitlines()[0]}") from None
    return training_split(data, f"the data set {path}")


def training_split(data: Any, name: str) -> Any:
    """Return the split `train` of a data set with several splits; UsageError where it has none of that name."""
    if not isinstance(data, dict):
        return data
    if "train" not in data:
        raise UsageError(f"{name} has no split `train`, only {', '.join(map(str, data))}; give one of these")
    return data["train"]


def drop_missing(value: Any) -> Any:
    """Return a value of a table without the keys that a table adds to rows which lack them."""
    if isinstance(value, dict):
        return {key: drop_missing(x) for key, x in value.items() if x is not None}
    return [drop_missing(x) for x in value] if isinstance(value, list) else value


def check_record(row: Any, where: str) -> Record:
    """Return a row as a record that knows where it comes from; UsageError unless it has a usable prompt and whole texts."""
    if not isinstance(row, dict):
        raise UsageError(f"{where} is a {type(row).__name__}; it must be an object with a `prompt`")
    if not is_prompt(row.get("prompt")):
        raise UsageError(f'{where} needs a `prompt`: text, or a list of {{"role": ..., "content": ...}} messages')
    for name, value in row.items():
        for part in texts_in(value, where):
            check_whole(part, f"{where} in its {name}")
    record = Record(row)
    record.where = where
    return record


def texts_in(value: Any, where: str, depth: int = DEEPEST) -> Iterator[str]:
    """All texts in a JSON value.

    Args:
        value: of a column.
        where: it was read.
        depth: of lists and objects inside one another that may follow.

    Raises:
        UsageError: there are more of them.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        if not depth:
            raise UsageError(
                f"{where} is nested too deeply; at most {DEEPEST} lists or objects may be inside one another"
            )
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item, where, depth - 1)


def is_prompt(prompt: Any) -> bool:
    """Whether it is text or chat messages, and not empty; a message that calls tools may lack `content`."""
    if isinstance(prompt, str):
        return bool(prompt)
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and ("content" in m or m.get("tool_calls"))
            for m in prompt
        )
    )


# -------------------------------------------------------------------- training and held-out records


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
    source: Source,
    heldout: float | Source,
    check: Callable[[Record], Record] | None = None,
    form: str = "a `prompt`",
) -> tuple[list[Record], list[Record]]:
    """Read (training, held-out) records.

    Args:
        source: the rows.
        heldout: the share of the prompts that is held out, or a second source with the held-out rows.
        check, form: see `load_records`.

    Raises:
        UsageError: the share is none, or nothing is left to train on.
    """
    records = load_records(source, check, form)
    if not isinstance(heldout, int | float):
        return records, load_records(heldout, check, form, row="held-out row")
    training, held = split(records, check_share(heldout))
    if not training:
        name = source if isinstance(source, str | Path) else "the list"
        raise UsageError(f"{name} has a single prompt, so none can be held out; set heldout to a file with others")
    return training, held


def hold_out(
    records: Sequence[dict[str, Any]], heldout: float | Source
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide records in random order into (training, held-out) ones.

    Args:
        records: of which the first are held out, where it is a share.
        heldout: the share that is held out, or a source with the held-out rows, whose prompts are not trained on.
    """
    if isinstance(heldout, int | float):
        count = max(1, round(check_share(heldout) * len(records)))
        return list(records[count:]), list(records[:count])
    held: list[dict[str, Any]] = [*load_records(heldout)]
    prompts = [record["prompt"] for record in held]
    return [record for record in records if record["prompt"] not in prompts], held


def check_share(heldout: float) -> float:
    """Return the share of a data set that is held out; UsageError unless it is one."""
    if not 0 < heldout < 1:
        raise UsageError(f"heldout must be a share between 0 and 1 or a file, not {heldout}")
    return heldout


def add_system(record: dict[str, Any], system: str, where: str) -> dict[str, Any]:
    """Put a system message before a record's chat prompt; one that begins with a system message of its own keeps that.

    Args:
        record: which stays as it is.
        system: the message.
        where: the record in messages.

    Raises:
        UsageError: the prompt is plain text.
    """
    prompt = record["prompt"]
    if isinstance(prompt, str):
        raise UsageError(
            f"a system message (--task.system) goes before chat messages, and the prompt of {where} is plain text"
        )
    if prompt[0]["role"] == "system":
        return record
    changed = Record({**record, "prompt": [{"role": "system", "content": system}, *prompt]})
    changed.where = where
    return changed


# -------------------------------------------------------------------- tokens


def solution_of(record: dict[str, Any], where: str) -> str:
    """Return a record's reference solution; UsageError, naming the record, where it has none."""
    solution = record.get("solution", record.get("answer"))
    if not isinstance(solution, str) or not solution:
        raise UsageError(f"the method needs reference solutions, and {where} has neither `solution` nor `answer`")
    return solution


def encode_record(policy: Any, record: dict[str, Any]) -> list[int]:
    """Token ids of a record's prompt, with its `tools` where it has some."""
    return policy.encode(record["prompt"], read_tools(record))


def read_tools(record: dict[str, Any]) -> list[Any] | None:
    """Return a record's column `tools`, a list or its JSON text; None where it is empty. UsageError where it is neither."""
    tools = record.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    except (ValueError, RecursionError):
        tools = 0
    if tools and isinstance(tools, list):
        return tools
    if tools not in (None, "", [], {}):
        raise UsageError(f"its `tools` must be a list of tools, or the JSON text of one, not {record['tools']!r:.60}")
    return None
