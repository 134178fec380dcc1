"""Copies of an environment in other processes, each of which steps several while the others do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle

from anypo.errors import RunError, UsageError
from anypo.tasks.control.env_copy import EnvCopy
from anypo.tasks.control.make_env import describe_error

MIRRORED = ("observation", "mask", "over", "done", "total", "length", "channel_rewards")
"""What this process knows of a copy elsewhere, after every call."""

HERE: list[EnvCopy] = []
"""In a worker process: its copies."""


class Workers:
    """Processes that hold copies.

    name: of the task, for messages. make: makes a copy there; it is sent as it is now. count: how many processes.
    """

    def __init__(self, name: str, make: Callable[[], EnvCopy], count: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.name = name
        try:
            self.make_there = cloudpickle.dumps(make)
        except Exception as error:
            raise UsageError(f"{name} cannot be sent to another process: {describe_error(error)}") from error
        self.processes = [ProcessPoolExecutor(1, context, begin_worker) for _ in range(count)]
        Finalize(self, end_processes, (self.processes,), exitpriority=100)  # before the queues are closed

    def make(self, count: int) -> list[RemoteCopy]:
        """Make copies, neighbours in the same process."""
        bounds = [count * i // len(self.processes) for i in range(len(self.processes) + 1)]
        shares = [after - before for before, after in pairwise(bounds)]
        with self.alive():
            asked = [
                (process, process.submit(open_copies, os.getcwd(), self.make_there, share))
                for process, share in zip(self.processes, shares, strict=True)
                if share
            ]
            return [RemoteCopy(self, process, i, sizes) for process, future in asked for i, sizes in future.result()]

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Refuse to go on where a process has ended."""
        try:
            yield
        except BrokenProcessPool as error:
            raise RunError(
                f"{self.name}: a worker process ended unexpectedly: it was killed, ran out of memory or crashed (a script that trains"
                ' with workers does so below `if __name__ == "__main__":`)'
            ) from error


def end_processes(processes: list[ProcessPoolExecutor]) -> None:
    """Let processes end, and wait for that."""
    for process in processes:
        process.shutdown()


class RemoteCopy:
    """A copy in a worker process, as its last call left it; otherwise as `EnvCopy`."""

    over, done, row, mask = True, False, -1, None
    observation: Any
    total: float
    length: int
    channel_rewards: list[float]

    def __init__(self, workers: Workers, process: ProcessPoolExecutor, place: int, sizes: list[int]):
        self.workers, self.process, self.place, self.sizes = workers, process, place, sizes
        self.result: Any = None

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.over else call_all([self], "state_dict", [()])[0]

    def replay(self, state: dict[str, Any] | None) -> bool:
        return call_all([self], "replay", [(state,)])[0]

    @staticmethod
    def reset_all(copies: Sequence[Any], starts: Sequence[tuple[int, int | None]]) -> None:
        call_all(copies, "reset", starts)

    @staticmethod
    def step_all(copies: Sequence[Any], actions: Iterable[Any]) -> list[float]:
        return call_all(copies, "step", [(action,) for action in actions])


Copy = EnvCopy | RemoteCopy
"""Of an environment, in this process or in another."""


def call_all(copies: Sequence[RemoteCopy], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a method of copies, at the same time where they are in different processes; returns the results.

    Args:
        copies: the copies.
        method: its name.
        arguments: of every call.
    """
    groups: dict[ProcessPoolExecutor, list[tuple[RemoteCopy, tuple[Any, ...]]]] = {}
    for copy, values in zip(copies, arguments, strict=True):
        groups.setdefault(copy.process, []).append((copy, values))
    with copies[0].workers.alive():
        futures = [
            process.submit(call_here, method, [(copy.place, values) for copy, values in group])
            for process, group in groups.items()
        ]
        outcomes = [outcome for future in futures for outcome in future.result()]
    asked = [copy for group in groups.values() for copy, _ in group]
    for copy, (result, status) in zip(asked, outcomes, strict=True):
        vars(copy).update(status, result=result)
    return [copy.result for copy in copies]


# in a worker process


def begin_worker() -> None:
    """Leave interrupts to the process that asks, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this process when the one that started it has ended."""
    parent: Any = multiprocessing.parent_process()
    wait([parent.sentinel])
    os._exit(1)


def open_copies(folder: str, make: bytes, count: int) -> list[tuple[int, list[int]]]:
    """Make copies; returns the place of each, and the choices of its actions.

    Args:
        folder: the working directory.
        make: makes a copy.
        count: how many.
    """
    os.chdir(folder)
    try:
        make_copy = cloudpickle.loads(make)
    except Exception as error:
        raise UsageError(f"the environment cannot be made in another process: {describe_error(error)}") from error
    first = len(HERE)
    HERE.extend(make_copy() for _ in range(count))
    return [(i, HERE[i].sizes) for i in range(first, len(HERE))]


def call_here(method: str, calls: list[tuple[int, tuple[Any, ...]]]) -> list[tuple[Any, dict[str, Any]]]:
    """Call a method of copies one after the other; returns its results and what is mirrored of the copies.

    Args:
        method: its name.
        calls: place and arguments.
    """
    results = []
    for place, values in calls:
        copy = HERE[place]
        result = getattr(copy, method)(*values)
        results.append((result, {name: getattr(copy, name, None) for name in MIRRORED}))
    return results
