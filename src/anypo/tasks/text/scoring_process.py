"""The process that scores answers which may take forever or execute what a model has written. A script: it runs in an interpreter of
its own that imports neither torch nor the rest of the library; `scoring.Scorer` starts it and speaks with it.

It imports what scores once and forks workers, which have limits on time, memory, files and processes and hand back numbers. A worker
that crashes, hangs or is killed costs one answer; the next worker scores those that follow.

For a kind that executes answers the process is confined first, and every answer has a worker of its own: a user, network, mount, process
and IPC namespace of its own; a file system that holds Python and its libraries, read-only, and nothing else; no privileges. Linux
offers this to every user, through system calls for which Python 3.11 has no functions, so this file calls the C library.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import pickle
import re
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

AnswerScore = Callable[[str, Any], float | None]
"""The score of an answer, given its reference; None where the reference cannot be read."""

NUMBER = struct.Struct("<d")
"""What a worker hands back, and the reply to one answer: NaN is a missing score, -inf an answer that was not reached in time."""

MEMORY = 2 << 30
"""Bytes of address space of a worker."""

NOBODY = 65534
"""User and group, where the process was started by root."""

SCRATCH = "/scratch"
"""The one directory that can be written, by imports that need one; it is in memory and ends with the process."""

NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER, NEWNS, NEWNET, NEWPID, NEWIPC and NEWUTS of <linux/sched.h>."""


# what is scored


def make_regex_score(pattern: str | None) -> AnswerScore:
    """AnswerScore 1 where the pattern, or else the one in the reference, is found in the answer."""
    return lambda answer, reference: float(re.search(reference if pattern is None else pattern, answer) is not None)


def make_math_score() -> AnswerScore:
    """AnswerScore 1 where math-verify finds the answer equal to the reference, LaTeX or plain."""
    from math_verify import parse, verify

    unlimited: Any = None  # a worker that takes too long is killed

    def score(answer: str, reference: str) -> float | None:
        gold = reference if "$" in reference or "\\boxed" in reference else f"${reference}$"
        expected = parse(gold, parsing_timeout=unlimited)
        if not expected:
            return None
        return float(verify(expected, parse(answer, parsing_timeout=unlimited), timeout_seconds=unlimited))

    return score


def make_reasoning_score(name: str, size: int, seed: int, example: Any, expected: float) -> AnswerScore:
    """AnswerScore by the verifier of a data set of reasoning-gym.

    Args:
        name, size, seed: of the data set.
        example: one of its problems.
        expected: score of the example's own answer, which it must get here too.

    Raises:
        RuntimeError: it gets another.
    """
    import reasoning_gym

    data = reasoning_gym.create_dataset(name, size=size, seed=seed)
    score = data.score_answer(example["answer"], entry=example)
    if score != expected:
        raise RuntimeError(f"a reference answer scores {score:g} there instead of {expected:g}")
    return lambda answer, entry: data.score_answer(answer, entry=entry)


SCORES: dict[str, Callable[..., AnswerScore]] = {
    "regex": make_regex_score,
    "math": make_math_score,
    "reasoning": make_reasoning_score,
}


# confinement


def enter_namespaces(replies: int) -> None:
    """Confine the process; the caller goes on in a child, the first process of its namespace, while the parent waits for it.

    `replies` is where the other side reads that this process waits for its user to be mapped.
    """
    call_c("unshare", NAMESPACES)
    os.write(replies, b"map\n")
    sys.stdin.buffer.read(1)
    root = "/proc"  # hidden below the new root
    private, bind, no_devices = 0x4000 | 1 << 18, 0x1000 | 0x4000, 0x2 | 0x4
    call_c("mount", None, b"/", None, private, None)
    call_c("mount", b"tmpfs", root.encode(), b"tmpfs", no_devices, b"size=1m,mode=755")
    for path in readable_folders():
        os.makedirs(root + path, exist_ok=True)
        call_c("mount", path.encode(), (root + path).encode(), None, bind, None)
    os.mkdir(root + SCRATCH)
    read_only = (ctypes.c_uint64 * 4)(0x1 | no_devices)
    mount_setattr, here, recursive = 442, -100, 0x8000
    call_c("syscall", mount_setattr, here, root.encode(), recursive, ctypes.byref(read_only), ctypes.sizeof(read_only))
    call_c("mount", b"tmpfs", (root + SCRATCH).encode(), b"tmpfs", no_devices, b"size=16m,nr_inodes=1k,mode=1777")
    os.environ |= {"TMPDIR": SCRATCH, "HOME": SCRATCH}
    os.chroot(root)
    os.chdir("/")
    if child := os.fork():
        os.close(replies)
        os.waitpid(child, 0)
        os._exit(0)
    drop_privileges()


def readable_folders() -> list[str]:
    """Return the directories that Python reads: the system's libraries, and where modules are found."""
    paths = ["/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix, *sys.path]
    folders: list[str] = []
    for path in sorted({name for p in paths if os.path.isdir(p) for name in (os.path.abspath(p), os.path.realpath(p))}):
        if not any(path.startswith(f"{known}/") for known in folders):
            folders.append(path)
    return folders


def drop_privileges() -> None:
    """Give up every capability for good, and root; end with the parent."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call_c("capset", ctypes.byref((ctypes.c_uint32 * 2)(0x20080522)), ctypes.byref((ctypes.c_uint32 * 6)()))
    no_new_privileges, dumpable, signal_at_parents_death = 38, 4, 1
    call_c("prctl", no_new_privileges, 1, 0, 0, 0)
    call_c("prctl", dumpable, 0, 0, 0, 0)  # workers cannot trace this process
    call_c("prctl", signal_at_parents_death, signal.SIGKILL, 0, 0, 0)


def call_c(name: str, *args: Any) -> None:
    """Call a function of the C library; OSError, naming it, where it fails or there is none."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:
        raise OSError(f"there is no {name} here") from None
    if function(*(ctypes.c_long(x) if isinstance(x, int) else x for x in args)) != 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


# workers


def start_worker(score: AnswerScore, answers: Sequence[tuple[str, Any]], each: float, alone: bool) -> tuple[int, int]:
    """Fork a worker; return its process id and the pipe of its numbers.

    Args:
        score: of an answer and its reference.
        answers: pairs of both.
        each: seconds of computing that one answer may take.
        alone: the worker scores the first answer only.
    """
    numbers, out = os.pipe()
    if pid := os.fork():
        os.close(out)
        return pid, numbers
    try:
        os.dup2(2, 0)
        os.dup2(2, 1)
        os.closerange(3, out)
        os.closerange(out + 1, 256)
        for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_FSIZE, 0)):
            lower_limit(kind, most)
        lower_limit(resource.RLIMIT_NPROC, 0)
        lower_limit(resource.RLIMIT_CORE, 0)
        for answer, reference in answers[: 1 if alone else None]:
            most = math.ceil(time.process_time() + each) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            try:
                value = score(answer, reference)
            except Exception:  # whatever an answer brings about is a wrong answer
                value = 0.0
            os.write(out, NUMBER.pack(math.nan if value is None else value))
    finally:
        os._exit(0)


def lower_limit(kind: int, most: int) -> None:
    """Lower a resource limit for good."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def score_all(
    score: AnswerScore, answers: Sequence[tuple[str, Any]], each: float, total: float, alone: bool, replies: int
) -> None:
    """Reply with one number per answer.

    Args:
        score: of an answer and its reference.
        answers: pairs of both.
        each: seconds that one answer may take; one that takes longer is wrong.
        total: seconds for all; answers that are not reached in them get -inf.
        alone: every answer has a worker of its own, and its score is within [0, 1].
        replies: where the numbers are written.
    """
    end, worker = time.monotonic() + total, None
    for i in range(len(answers)):
        left = end - time.monotonic()
        if left <= 0:
            os.write(replies, NUMBER.pack(-math.inf) * (len(answers) - i))
            break
        if worker is None:
            worker = start_worker(score, answers[i:], each, alone)
        ready = select.select([worker[1]], [], [], min(each, left))[0]
        number = os.read(worker[1], NUMBER.size) if ready else b""
        value = NUMBER.unpack(number)[0] if len(number) == NUMBER.size else 0.0
        if alone:
            value = min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
        if alone or len(number) != NUMBER.size:
            end_worker(*worker)
            worker = None
        os.write(replies, NUMBER.pack(value))
    if worker is not None:
        end_worker(*worker)


def end_worker(pid: int, numbers: int) -> None:
    """Kill a worker and everything it left open."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(numbers)


def serve() -> None:
    """Set up as the first message says, then answer one request after the other until there are no more."""
    replies = os.dup(1)
    os.dup2(2, 1)
    kind, args, confined = pickle.load(sys.stdin.buffer)
    try:
        if confined:
            enter_namespaces(replies)
        score = SCORES[kind](*args)
    except Exception as error:
        os.write(replies, f"error {error}".splitlines()[0].encode() + b"\n")
        return
    gc.freeze()
    os.write(replies, b"ready\n")
    while True:
        try:
            answers, each, total = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        score_all(score, answers, each, total, confined, replies)


if __name__ == "__main__":
    serve()
