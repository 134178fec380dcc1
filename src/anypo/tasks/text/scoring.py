"""AnswerScore answers in another process; see `scoring_process`."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from anypo.errors import RunError
from anypo.tasks.text import scoring_process
from anypo.tasks.text.scoring_process import NOBODY, NUMBER

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of the process, which forks and may have only one thread to do so."""


class Scorer:
    """A process that scores answers, used until the end; what it returns is numbers only.

    kind, args: what scores, see `scoring_process.SCORES`. confined: the answers are executed. total: seconds for all answers of a call;
    those that are not reached in them score `unreached`. An answer that takes more than a twelfth of them, or ends the worker that
    scores it, scores 0.
    """

    def __init__(
        self,
        kind: str,
        *args: Any,
        confined: bool = False,
        total: float = 60.0,
        unreached: float | None = None,
    ):
        self.setup = (kind, args, confined)
        self.each, self.total, self.unreached = total / 12, total, unreached
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False

    def launch(self) -> None:
        """Start the process; it sets itself up while the caller goes on."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", scoring_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # an interrupt typed at the terminal is not for it
        )
        self.close = weakref.finalize(self, _end, self.process)
        self._send(self.setup)

    def start(self) -> None:
        """Wait until the process is ready. Raises OSError, saying why, where it cannot be."""
        if self.process is None:
            self.launch()
        reply = self._read_line()
        if reply == "map":
            _map_user(self._pipes()[2])
            self._pipes()[0].write(b"\n")
            self._pipes()[0].flush()
            reply = self._read_line()
        if reply != "ready":
            raise OSError(reply.removeprefix("error ") or "it ended")
        self.ready = True

    def __call__(self, answers: Sequence[tuple[str, Any]]) -> list[float | None]:
        """Return the scores of (answer, reference) pairs; None where a reference cannot be read.

        Raises RunError where the process has ended.
        """
        try:
            if not self.ready:
                self.start()
            self._send((list(answers), self.each, self.total))
            replies = self._pipes()[1].read(NUMBER.size * len(answers))
        except OSError as error:
            raise RunError(f"the process that scores answers cannot be used: {error}") from error
        except BaseException:  # interrupted: what it still replies is no answer to the next call
            self.close()
            self.process, self.ready = None, False
            raise
        if len(replies) < NUMBER.size * len(answers):
            raise RunError("the process that scores answers has ended; is there too little memory?")
        return [
            self.unreached if x == -math.inf else None if math.isnan(x) else x for (x,) in NUMBER.iter_unpack(replies)
        ]

    def _send(self, message: Any) -> None:
        pickle.dump(message, self._pipes()[0])
        self._pipes()[0].flush()

    def _read_line(self) -> str:
        return self._pipes()[1].readline().decode().strip()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes], int]:
        """Return the process's input, output and number."""
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        return process.stdin, process.stdout, process.pid


def _map_user(process: int) -> None:
    """Map this user, and for root another one without rights, into the user namespace that a process has made."""
    user, group = os.geteuid(), os.getegid()
    nobody = "" if user else f"\n{NOBODY} {NOBODY} 1"
    folder = Path("/proc") / str(process)
    if user:
        (folder / "setgroups").write_text("deny")
    (folder / "uid_map").write_text(f"{user} {user} 1{nobody}")
    (folder / "gid_map").write_text(f"{group} {group} 1{nobody}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
