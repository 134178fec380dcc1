"""Training in a process that is killed. Processes are forked from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["anypo.loops.learn", "anypo.runs.folder", "gymnasium", "transformers"])


def train(values: dict[str, Any]) -> None:
    import torch

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.runs.folder import create

    torch.set_num_threads(1)
    learn(create(from_dict(values)))


def train_and_kill(values: dict[str, Any], ready: Callable[[Path], bool]) -> None:
    """Train in another process, and kill it once its folder is `ready`."""
    process = FORKS.Process(target=train, args=(values,))
    process.start()
    while process.is_alive() and not ready(Path(values["out"])):
        time.sleep(0.002)
    process.kill()
    process.join()
