"""Transitions in .npz and Parquet files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from anypo.errors import UsageError
from anypo.tasks.control.columns import read_flags, read_numbers, read_scalars, require_rows

COLUMNS = ("observations", "actions", "rewards", "terminals")
"""Columns of a data file."""


OPTIONAL = ("next_observations", "timeouts", "expert")
"""Columns that may be missing; `expert` is 1 on transitions of an expert. Others are not read."""


def read_file(path: Path) -> dict[str, Any]:
    """Read the transitions of an .npz or Parquet file."""
    columns = read_columns(path, (*COLUMNS, *OPTIONAL))
    for name in COLUMNS:
        if name not in columns:
            raise UsageError(f"{path} has no column {name!r}; it needs {', '.join(COLUMNS)}")
    data: dict[str, Any] = {name: read_numbers(str(path), name, column) for name, column in columns.items()}
    data["rewards"] = read_scalars(str(path), "rewards", data["rewards"])
    n = len(data["rewards"])
    data.setdefault("timeouts", np.zeros(n, bool))
    for name in ("terminals", "timeouts"):
        data[name] = read_flags(str(path), name, data[name])
    for name, column in data.items():
        require_rows(str(path), name, column, n)
    return data if "next_observations" in data else add_following(data)


def read_columns(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Read the columns of these names that an .npz or Parquet file has."""
    if not path.exists():
        raise UsageError(f"there is no data file {path}")
    try:
        return read_npz(path, names) if path.suffix == ".npz" else read_parquet(path, names)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} cannot be read: {error}") from None


def read_npz(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Read the columns of these names that an .npz file has."""
    loaded = np.load(path)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UsageError(f"{path} holds one array without a name; write the columns with np.savez")
    columns = {}
    with loaded as arrays:
        for name in {*names} & set(arrays.files):
            try:
                columns[name] = arrays[name]
            except ValueError as error:  # pickled objects, which are not loaded
                shape = header_shape(arrays, name)
                raise UsageError(
                    f"{path}: the column {name!r} has the type object and the shape {shape}; it must hold numbers"
                ) from error
        return columns


def header_shape(arrays: Any, name: str) -> tuple[int, ...]:
    """Shape of an array of an .npz file, from its header."""
    with arrays.zip.open(f"{name}.npy") as handle:
        np.lib.format.read_magic(handle)
        return np.lib.format.read_array_header_1_0(handle)[0]


def read_parquet(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Read the columns of these names that a Parquet file has."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {name: table[name].to_pylist() for name in names if name in table.column_names}


def add_following(data: dict[str, Any]) -> dict[str, Any]:
    """Add what followed every transition; the last one before a cut is left out, as what followed it is not known."""
    n = len(data["rewards"])
    if n == 0:
        return {**data, "next_observations": data["observations"]}
    cut = data["timeouts"] & ~data["terminals"]
    cut[-1] = cut[-1] or not data["terminals"][-1]
    ends = data["timeouts"].copy()
    ends[:-1] |= cut[1:]
    following = np.concatenate([data["observations"][1:], data["observations"][-1:]])
    data = {**data, "timeouts": ends, "next_observations": following}
    return {name: column[~cut] for name, column in data.items()}
