"""Read what a procedure is run with: arguments and flags, as the annotations of its parameters say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.errors import UsageError, unknown
from anypo.flags import read_plain
from anypo.method.procedure import Procedure, is_array, is_table
from anypo.parts.store.episodes import Table
from anypo.ranges import alternatives, check
from anypo.tasks.control.columns import make_table, read_numbers
from anypo.tasks.control.data_files import read_columns
from anypo.tasks.control.offline import Dataset, read_table
from anypo.tasks.text.records import rows_of_file


def read_call(procedure: Procedure, words: list[str], flags: dict[str, str]) -> dict[str, Any]:
    """Return the arguments that a procedure's function is called with, by name.

    Tensors among the inputs are columns of one file, named like their parameters unless a flag names another column; other tensors
    are further columns of it, or of a file of their own where there is none. Transitions are a data set; what it states of itself
    (`low` and `high`) is taken for parameters of that name that no flag sets.

    Args:
        procedure: the procedure.
        words: what was typed for its inputs, in order.
        flags: by parameter, as typed.

    Raises:
        UsageError: an input is missing, is one too many or cannot be read, or a flag does not exist.
    """
    hints, inputs, places = procedure.hints(), procedure.inputs(), procedure.places()
    columns = {name: flags.get(name, name) for name in inputs if is_array(hints[name])}
    if columns:
        columns |= {name: text for name, text in flags.items() if is_array(hints.get(name))}
    for name in flags:
        if name not in {*procedure.flags(), *columns}:
            raise unknown(f"flag of {procedure.card.id}:", name, [*procedure.flags(), *columns], prefix="--")
    if len(words) != len(places):
        count = f"{len(places)} input{'s' * (len(places) != 1)}"
        raise UsageError(f"{procedure.card.id} takes {count}, not {len(words)}: {procedure.usage()}")
    typed = dict(zip(places, words, strict=True))
    typed |= {name: text for name, text in flags.items() if name not in columns}
    values: dict[str, Any] = {}
    stated: dict[str, float] = {}
    for name, text in typed.items():
        if name == "FILE":
            values |= read_arrays(text, columns, hints)
        elif is_array(hints[name]):
            values |= read_arrays(text, {name: name}, hints)
        elif is_table(hints[name]):
            values[name], of_itself = read_transitions(text)
            stated |= of_itself if name in inputs else {}
        else:
            values[name] = read_argument(name, hints[name], text)
    return {name: value for name, value in stated.items() if name in procedure.flags()} | values


def read_argument(name: str, hint: Any, text: str) -> Any:
    """Return a value of a parameter as its annotation takes it.

    Args:
        name: of the parameter.
        hint: its annotation.
        text: as typed.

    Raises:
        UsageError: the text is no such value.
    """
    kinds = {kind for kind, _ in alternatives(hint)}
    if Path in kinds:
        return Path(text)
    return check(f"--{name}", hint, text if str in kinds else read_plain(name, text))


def read_arrays(source: str, columns: dict[str, str], hints: dict[str, Any]) -> dict[str, Tensor]:
    """Read tensors from the columns of a file.

    Args:
        source: an .npz, Parquet or JSONL file, or a folder of `datasets`.
        columns: by parameter.
        hints: annotations by parameter.

    Raises:
        UsageError: the file lacks a column, or one does not hold numbers of the annotated shape.
    """
    path = Path(source)
    if path.suffix in (".npz", ".parquet"):
        content = read_columns(path, columns.values())
    else:
        rows = [row for _, row in rows_of_file(path, ", ".join(columns.values()))]
        content = {name: [row[name] for row in rows] for name in columns.values() if all(name in row for row in rows)}
    tensors = {}
    for name, column in columns.items():
        if column not in content:
            raise UsageError(f"{source} has no column {column!r} in every row; --{name} COLUMN names another one")
        numbers = torch.from_numpy(np.array(read_numbers(source, column, content[column])))
        takes = tuple(kind for kind, _ in alternatives(hints[name]) if kind is not type(None))
        others = [x for x in (numbers.double(), numbers.long()) if torch.equal(x.double(), numbers.double())]
        fits = [x for x in (numbers, *others) if isinstance(x, takes)]
        if not fits:
            wanted = " or ".join(kind.__name__ for kind in takes)
            raise UsageError(
                f"{source}: the column {column!r} has the shape {list(numbers.shape)}; {name} is a {wanted}"
            )
        tensors[name] = fits[0]
    return tensors


def read_transitions(source: str, env: Any = None) -> tuple[Table, dict[str, float]]:
    """Read a data set by its name, every observation as numbers, and the returns `low` and `high` where it states them.

    Args:
        source: minari:ID, or an .npz or Parquet file.
        env: its environment, where the data do not name it; without one, observations and actions are taken as they are.
    """
    data = read_table(source)
    stated = {name: data[name] for name in ("low", "high") if data.get(name) is not None}
    env = env or data.get("env")
    if env is not None:
        return Dataset(source, data, env, envs=1).numbers(), stated
    if not isinstance(data["observations"], np.ndarray):
        raise UsageError(f"{source} has observations of several parts and does not name its environment")
    return make_table(source, data, *infer_spaces(data)), stated


def infer_spaces(data: dict[str, Any]) -> tuple[Any, Any]:
    """Return an observation and an action space that hold the data of a file: whole numbers, one a row, are choices."""
    from gymnasium.spaces import Box, Discrete

    shape, actions = data["observations"].shape[1:], data["actions"]
    boxes = Box(-np.inf, np.inf, shape, np.float64)
    if actions.dtype.kind in "iu" and actions.ndim == 1 and actions.size:
        start = int(actions.min())
        return boxes, Discrete(int(actions.max()) - start + 1, start=start)
    return boxes, Box(-np.inf, np.inf, actions.shape[1:], np.float64)
