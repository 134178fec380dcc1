"""A run killed before any of its file operations goes on to the same bytes."""

import hashlib
import os
import signal
import sys

import pytest
from killed import FORKS

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
"""Audit events of file operations; `os.fsync`, which has none, is counted by hand."""
POINTS = 12
"""Kills of the ordinary suite, evenly over the run; the slow test takes every one."""


@pytest.fixture(scope="module")
def values(tmp_path_factory, tiny_model):
    """A short run of a language model: anchors, checkpoints of which old ones are dropped, a model at the end."""
    data = tmp_path_factory.mktemp("data") / "p.jsonl"
    data.write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(6)))
    return {
        "method": "grpo", "steps": 4, "checkpoint_every": 1, "collect": {"requests": 2, "samples": 2}, "step": {"lr": 1e-2},
        "task": {"name": f"jsonl:{data}", "reward": "regex:a", "max_new": 4}, "policy": f"hf:{tiny_model('llama')}",
    }  # fmt: skip


def train(values, folder, kill_at, counted):
    """Train to the end, from wherever the folder stands; die before the file operation number `kill_at`.

    Args:
        values: the configuration.
        folder: the run's.
        kill_at: 0 for never.
        counted: receives how many operations there were.
    """
    import torch

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.report.console import finish, result_of
    from anypo.runs.folder import continue_run, create

    torch.set_num_threads(1)

    def count(*_):
        counted.value += 1
        if counted.value == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        below = arguments and isinstance(arguments[0], (str, os.PathLike)) and str(folder) in str(arguments[0])
        if event in OPERATIONS and (below or event in ("os.remove", "os.rmdir")):
            count()

    sync = os.fsync
    os.fsync = lambda descriptor: (count(), sync(descriptor))
    sys.addaudithook(audit)
    if result_of(folder):
        return
    run = (
        continue_run(folder) if (folder / "config.yaml").exists() else create(from_dict({**values, "out": str(folder)}))
    )
    learn(run)
    finish(run)


def train_apart(values, folder, kill_at=0):
    """Train in a process of its own; return its exit code and how many file operations it came to."""
    counted = FORKS.Value("i", 0)
    process = FORKS.Process(target=train, args=(values, folder, kill_at, counted))
    process.start()
    process.join()
    return process.exitcode, counted.value


def content(folder):
    """Digest of every file of a run that has no times in it."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("timing.jsonl", ".lock")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(values, tmp_path_factory):
    """The uninterrupted run: its files, and its number of file operations."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    code, operations = train_apart(values, folder)
    assert code == 0
    return content(folder), operations


def check_killed_at(point, values, whole, folder):
    """Kill a run at a file operation, and let it go on."""
    code, _ = train_apart(values, folder, point)
    assert code == -signal.SIGKILL
    assert train_apart(values, folder)[0] == 0
    assert content(folder) == whole[0], point


@pytest.mark.parametrize("part", range(POINTS))
def test_a_run_killed_at_a_file_operation_goes_on_to_the_same_bytes(part, values, whole, tmp_path):
    check_killed_at(1 + (whole[1] - 1) * part // (POINTS - 1), values, whole, tmp_path / "r")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_every_file_operation_goes_on_to_the_same_bytes(values, whole, tmp_path):
    for point in range(1, whole[1] + 1):
        check_killed_at(point, values, whole, tmp_path / f"r{point}")


def test_a_run_killed_again_while_it_resumes_goes_on_to_the_same_bytes(values, whole, tmp_path):
    points = (whole[1] // 2, 3, whole[1] // 4)
    for point in points:
        assert train_apart(values, tmp_path / "r", point)[0] == -signal.SIGKILL
    assert train_apart(values, tmp_path / "r")[0] == 0
    assert content(tmp_path / "r") == whole[0]
