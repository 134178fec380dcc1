"""Rows of Parquet files and of folders written by `datasets.save_to_disk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anypo.errors import UsageError


def read_table_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file or of a data set's folder (its split `train`, where it has several); missing values are left
    out. Raises UsageError for anything else."""
    rows = read_folder(path) if path.is_dir() else read_parquet_rows(path)
    if not rows:
        raise UsageError(f"{path} is empty; it needs at least one row with a `prompt`")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def read_folder(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a folder."""
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"the folder {path} is no data set: {str(error).splitlines()[0]}") from None
    if isinstance(data, DatasetDict):
        if "train" not in data:
            raise UsageError(
                f"the data set {path} has no split `train`, only {', '.join(map(str, data))}; give PATH/SPLIT"
            )
        data = data["train"]
    return [dict(row) for row in data]
