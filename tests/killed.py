"""Processes that train, and may be killed; they are forked from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("anypo.cli", "anypo.loops.learn", "anypo.report.console", "anypo.runs.folder", "anypo.tasks.text.jsonl"),
        *("anypo.policies.language.model", "anypo.evidence.digest", "gymnasium", "transformers"),
        *("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "torch._dynamo"),
    ]
)


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


class Command:
    """`anypo WORDS` in a process of its own; `prepare` is called there first."""

    def __init__(self, folder: Path, *words: object, prepare: Callable[[], None] | None = None) -> None:
        self.files = [Path(tempfile.mkstemp(dir=folder, prefix=".output-")[1]) for _ in range(2)]
        self.process = FORKS.Process(target=call, args=(folder, list(map(str, words)), self.files, prepare))
        self.process.start()

    def end(self) -> tuple[int | None, list[str], str]:
        """Exit code, lines of the output, and errors, once it has ended."""
        self.process.join()
        out, errors = (path.read_text() for path in self.files)
        for path in self.files:
            path.unlink()
        return self.process.exitcode, out.splitlines(), errors


def call(folder: Path, words: list[str], files: list[Path], prepare: Callable[[], None] | None = None) -> None:
    import torch

    from anypo.cli import main

    if prepare is not None:
        prepare()
    torch.set_num_threads(1)
    os.chdir(folder)
    for stream, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    sys.argv = ["anypo", *words]
    main()
