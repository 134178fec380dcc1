"""Metrics to TensorBoard, Weights & Biases or trackio, beside metrics.jsonl."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.loops.run import Run

Watch = Callable[[dict[str, Any]], None]


@contextmanager
def tensorboard(run: Run) -> Iterator[Watch]:
    """Event files in RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.folder / "tensorboard") if run.folder else None) as writer:

        def watch(record: dict[str, Any]) -> None:
            for name, value in numbers(record).items():
                writer.add_scalar(name, value, record["batch"])

        yield watch


@contextmanager
def wandb(run: Run) -> Iterator[Watch]:
    """A W&B run in the project `anypo`, named like the run's folder."""
    import wandb as package

    name = run.folder.name if run.folder else None
    with package.init(project="anypo", name=name, config=run.config.to_dict()) as tracked:
        yield lambda record: tracked.log(numbers(record), step=record["batch"])


@contextmanager
def trackio(run: Run) -> Iterator[Watch]:
    """A local trackio run in the project `anypo`."""
    import trackio as package

    name = run.folder.name if run.folder else None
    package.init(project="anypo", name=name, config=run.config.to_dict())
    yield lambda record: package.log(numbers(record), step=record["batch"])
    package.finish()


TRACKERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def check(names: Sequence[str]) -> None:
    """Refuse an unknown tracker, or one whose package is missing, before anything is written."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", str(name), TRACKERS)
        if importlib.util.find_spec(name) is None:
            package = "wandb" if name == "wandb" else "anypo[track]"
            raise UsageError(f'the tracker {name} is not installed; run `pip install "{package}"`')


@contextmanager
def tracked(run: Run, names: Sequence[str], watch: Watch) -> Iterator[Watch]:
    """`watch`, and every tracker named."""
    with ExitStack() as stack:
        watches = [watch, *(stack.enter_context(TRACKERS[name](run)) for name in names)]

        def all_of(record: dict[str, Any]) -> None:
            for each in watches:
                each(record)

        yield all_of


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of a record."""
    return {name: value for name, value in record.items() if name != "batch"}
