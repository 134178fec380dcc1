"""A run's claim on its folder: nothing else writes there while the run lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from weakref import WeakValueDictionary

from anypo.config import Config
from anypo.errors import UsageError

CONFIG = "config.yaml"
"""A folder with this file is a run; it is written last."""


class Lock:
    """An exclusive flock on RUN/.lock, which the system ends with the process, however that ends."""

    def __init__(self, handle: TextIO) -> None:
        self.handle = handle

    def close(self) -> None:
        self.handle.close()


HELD: WeakValueDictionary[tuple[int, int], Lock] = WeakValueDictionary()
"""Locks of this process by device and inode, each as long as a run refers to it."""


def close_inherited() -> None:
    """Close the locks a forked child inherits: one that outlives its parent must not keep the folder."""
    for lock in HELD.values():
        lock.close()


os.register_at_fork(after_in_child=close_inherited)


def lock_folder(folder: Path) -> Lock:
    """Lock a folder for this process, which may hold it already.

    Raises:
        UsageError: another process trains the run.
    """
    path = folder / ".lock"
    while True:
        handle = path.open("a+")
        key = inode(handle.fileno())
        if key in HELD:
            handle.close()
            return HELD[key]
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip()
            handle.close()
            raise UsageError(f"{folder} is being trained by process {owner or 'that has just begun'}") from None
        with contextlib.suppress(FileNotFoundError):
            if inode(path) == key:
                break
        handle.close()  # the folder was removed meanwhile
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    HELD[key] = lock = Lock(handle)
    return lock


def inode(file: Path | int) -> tuple[int, int]:
    """Device and inode of a file."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


@dataclass
class ClaimedFolder:
    """A folder that this process alone may write to. created: the directories made for it, innermost first."""

    folder: Path
    lock: Lock
    created: list[Path] = field(default_factory=list)

    def withdraw(self) -> None:
        """Leave the folder as it was before; one that was there is free for another run."""
        if self.folder in self.created:
            shutil.rmtree(self.folder)
        else:
            for name in (CONFIG, "metrics.jsonl", "inputs.json", ".lock"):
                (self.folder / name).unlink(missing_ok=True)
            for anchor in self.folder.glob("anchor-*.safetensors"):
                anchor.unlink()
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        for parent in self.created[1:]:
            with contextlib.suppress(OSError):  # another run may be there by now
                parent.rmdir()


def claim(config: Config) -> ClaimedFolder:
    """ClaimedFolder the folder of a new run: that of `--out`, else the first free one of `default_folders`.

    Raises:
        UsageError: the folder cannot be made, holds a run, or is being trained in.
    """
    try:
        return claim_given(Path(config.out)) if config.out else claim_next(lambda: default_folders(config))
    except OSError as error:
        folder = config.out or next(default_folders(config))
        raise UsageError(f"cannot write the run to {folder}: {error.strerror}; choose another --out") from None


def claim_given(folder: Path) -> ClaimedFolder:
    """ClaimedFolder a folder that holds no run."""
    created = missing_directories(folder)
    folder.mkdir(parents=True, exist_ok=True)
    claimed = ClaimedFolder(folder, lock_folder(folder), created)
    if (folder / CONFIG).exists():
        raise UsageError(
            f"{folder} already holds a run; resume it with `anypo resume {folder}` or choose another --out"
        )
    if any((folder / "checkpoints").glob("batch-*")):
        raise UsageError(f"{folder} has checkpoints of a run without {CONFIG}; choose another --out")
    return claimed


def claim_next(candidates: Callable[[], Iterator[Path]]) -> ClaimedFolder:
    """ClaimedFolder the first folder that does not exist yet."""
    for folder in candidates():
        created = missing_directories(folder)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return ClaimedFolder(folder, lock_folder(folder), created)
    raise AssertionError("the candidates never end")


def missing_directories(folder: Path) -> list[Path]:
    """Return the directories on the way to a folder that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def default_folders(config: Config) -> Iterator[Path]:
    """runs/METHOD-TASK-SEED, then the same with 2, 3, ... behind it."""
    method, task = (file_name(name)[-40:] for name in (config.method, config.task["name"]))
    base = Path("runs") / f"{method}-{task}-{config.seed}"
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def file_name(name: str) -> str:
    """Replace every character that a file's name should not have by `-`."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)
