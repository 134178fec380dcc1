"""Metric writers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.loops.learn import Watch
from anypo.runs.run import Run

TRACKERS = ("tensorboard", "wandb", "trackio")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed, before anything is trained."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"the tracker {name} is not installed; run `pip install {name}`")


@contextmanager
def open_trackers(run: Run, names: Sequence[str], watch: Watch) -> Iterator[Watch]:
    """Open metric trackers; close them when the context ends.

    Args:
        run: its folder and configuration name the tracked run.
        names: some of TRACKERS.
        watch: gets every record too.

    Yields:
        A function that passes one metrics record on.
    """
    writers, close = [watch], []
    for name in names:
        if name == "tensorboard":
            board = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(run.folder))
            writers.append(partial(_scalars, board))
            close.append(board.close)
        else:
            module = importlib.import_module(name)
            module.init(project="anypo", name=run.folder.name if run.folder else None, config=run.config.to_dict())
            writers.append(module.log)
            close.append(module.finish)

    def write(record: dict[str, Any]) -> None:
        for writer in writers:
            writer(record)

    try:
        yield write
    finally:
        for end in close:
            end()


def _scalars(board: Any, record: dict[str, Any]) -> None:
    for name, value in record.items():
        board.add_scalar(name, value, record["done"])
