"""The command that runs procedures."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from anypo.cli.app import FREE, AsJson, app, out
from anypo.errors import UsageError


@app.command("run", context_settings=FREE, no_args_is_help=True)
def run_procedure(
    words: Annotated[list[str], typer.Argument(metavar="PROCEDURE [INPUT...] [FLAGS]", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Run a procedure, such as an estimator, and print what it returns; `anypo explain PROCEDURE` shows its inputs and flags.

    Every flag takes a value: `--ns 1,4,16`. Tensors are columns of a file (.npz, Parquet, JSONL), transitions a data set (minari:ID, or
    a file). Example: `anypo run best-of-n scores.jsonl --gold human_score --json`
    """
    from anypo.cli.inputs import read_call
    from anypo.method.registry import procedure

    inputs, flags = split_flags(words)
    if not inputs:
        raise UsageError("name a PROCEDURE; see `anypo methods`")
    chosen = procedure(inputs[0])
    print_result(chosen.call(**read_call(chosen, inputs[1:], flags)), as_json)


def split_flags(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split `FILE --gold human` into (["FILE"], {"gold": "human"})."""
    from anypo.flags import read_arguments

    read = list(read_arguments(words))
    return [text for name, text in read if not name], {name.replace("-", "_"): text for name, text in read if name}


def as_plain(value: Any) -> Any:
    """Return a result as numbers, texts, lists and dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): as_plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(x) for x in value]
    if callable(tolist := getattr(value, "tolist", None)):  # of tensors, arrays and their numbers
        return tolist()
    return value if isinstance(value, int | float | str | None) else str(value)


def without_nonfinite(value: Any) -> Any:
    """Return plain values with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nonfinite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [without_nonfinite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_result(value: Any, as_json: bool) -> None:
    """Print a result: a list of dictionaries as a table, a dictionary as a table of two columns, others as text."""
    result = as_plain(value)
    if as_json:
        typer.echo(json.dumps(without_nonfinite(result), indent=2))
    elif isinstance(result, list) and result and all(isinstance(row, dict) for row in result):
        table = Table(*result[0])
        for row in result:
            table.add_row(*(as_text(row.get(name)) for name in result[0]))
        out.print(table)
    elif isinstance(result, dict):
        table = Table("measure", "value")
        for name, figure in result.items():
            table.add_row(name, as_text(figure))
        out.print(table)
    else:
        typer.echo(as_text(result))


def as_text(value: Any) -> str:
    """Write a plain value for people: numbers with four digits, lists with commas."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(as_text, value)) if isinstance(value, list) else str(value)
