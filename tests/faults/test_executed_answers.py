"""Verifiers that execute what a model writes do so where it can do nothing: a hostile answer is a wrong answer, nothing else."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anypo.tasks.text.reasoning import EXECUTES, make_reasoning_task
from anypo.tasks.text.scoring import Scorer

confined = pytest.mark.skipif(
    subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="this system allows no user namespaces",
)


def verify(name: str, answers: list[str | None], timeout: float = 24.0) -> list[float | None]:
    """Scores of answers to one problem; None stands for the reference."""
    task = make_reasoning_task(name, size=3, heldout=0.9, seed=1, timeout=timeout)
    (reward,), record = task.rewards, task.records[0]
    texts = [f"<answer>{record['answer'] if a is None else a}</answer>" for a in answers]
    rows = len(texts)
    return reward([record["prompt"]] * rows, texts, [[0]] * rows, {"entry": [record["entry"]] * rows})


@confined
@pytest.mark.parametrize("name", sorted(EXECUTES))
def test_an_answer_that_is_executed_touches_no_file_and_only_it_is_wrong(name: str, tmp_path: Path):
    target = tmp_path / "touched"
    hostile = f"__import__('pathlib').Path('{target}').touch()"
    first, attack, last = verify(name, [None, hostile, None])
    assert first == last == 1
    assert attack is not None
    assert attack < 0.5
    assert not target.exists()


ATTACKS = {
    "a fork bomb": "[__import__('os').fork() for _ in iter(int, 1)]",
    "threads": "[__import__('threading').Thread(target=__import__('time').sleep, args=(9,)).start() for _ in iter(int, 1)]",
    "10 GB": "bytearray(10 * 2**30)",
    "10 GB in a file": "[open('/scratch/x', 'wb').write(bytes(2**20)) for _ in iter(int, 1)]",
    "an endless loop": "[0 for _ in iter(int, 1)]",
    "a loop that ignores signals": "[__import__('signal').signal(24, 1) for _ in iter(int, 1)]",
    "a socket": "__import__('socket').create_connection(('127.0.0.1', PORT)).send(b'out')",
    "killing everything": "__import__('os').kill(-1, 9)",
    "killing its parent": "__import__('os').kill(1, 9)",
    "killing the run": "__import__('os').kill(PID, 9)",
    "leaving": "__import__('os')._exit(0)",
    "sys.exit": "__import__('sys').exit(0)",
    "interrupting": "[].__class__.__base__.__subclasses__() and (_ for _ in ()).throw(KeyboardInterrupt())",
    "another program": "__import__('subprocess').run(['touch', 'TARGET'])",
    "deleting": "__import__('os').unlink('VICTIM')",
    "truncating": "__import__('os').truncate('VICTIM', 0)",
    "reading": "open('VICTIM').read() and __import__('os')._exit(0)",
    "mounting": "__import__('ctypes').CDLL(None).mount(b'none', b'/', None, 32 | 4096, None)",
    "changing the verifier": "__import__('reasoning_gym').algorithmic.binary_matrix.BinaryMatrixDataset.__dict__ and setattr(__import__("
    "'reasoning_gym').algorithmic.binary_matrix.BinaryMatrixDataset, 'score_answer', lambda *a, **k: 1.0)",
    "numbers in every pipe": "[__import__('os').write(i, b'x' * 80) for i in range(3, 64)]",
}


@confined
def test_every_attack_is_one_wrong_answer_each_and_nothing_else(tmp_path: Path):
    import socket

    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        words = {"PORT": server.getsockname()[1], "PID": os.getpid(), "TARGET": target, "VICTIM": victim}
        attacks = [re.sub("|".join(words), lambda m: str(words[m[0]]), text) for text in ATTACKS.values()]
        answers = [a for attack in attacks for a in (attack, None)]
        scores = verify("binary_matrix", answers, timeout=12.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert {name: x for name, x in zip(ATTACKS, scores[::2], strict=True) if not (x is not None and x < 0.5)} == {}
    assert scores[1::2] == [1.0] * len(ATTACKS), "what follows an attack is scored as before"
    assert victim.read_text() == "kept"
    assert not target.exists()


@confined
def test_the_process_of_a_verifier_ends_with_its_task():
    task: Any = make_reasoning_task("spiral_matrix", size=2, heldout=0.9)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    assert before
    del task
    assert len(set(children.read_text().split())) == len(before) - 1


def test_every_verifier_of_reasoning_gym_that_evaluates_answers_is_known():
    from reasoning_gym.factory import DATASETS

    evaluates = re.compile(r"\b(eval|exec|sympify)\(|\bparse_expr\(")
    found = set()
    for name, (dataset, _) in DATASETS.items():
        text = inspect.getsource(dataset)
        body = text[text.index("def score_answer") :] if "def score_answer" in text else ""
        found |= {name} if evaluates.search(body) else set()
    trusted = {name for name in found if name == "number_sorting"}  # evaluates its own reference only
    assert found - trusted == EXECUTES


@confined
def test_a_system_that_refuses_confinement_is_one_sentence_before_the_run(tmp_path: Path):
    options = (
        f"--task reasoning-gym:countdown --task.size 3 --task.heldout 0.9 --policy hf:none --out {tmp_path / 'run'}"
    )
    anypo = f"{sys.executable} -m anypo train grpo {options}"
    command = ["unshare", "-Ur", "sh", "-c", f"echo 0 > /proc/sys/user/max_user_namespaces; {anypo}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "the verifier of reasoning-gym:countdown executes what a model writes" in line
    assert "unshare: No space left on device" in line
    assert not (tmp_path / "run").exists()


def test_a_kind_that_cannot_be_set_up_says_why():
    with pytest.raises(OSError, match="no_such_set"):
        Scorer("reasoning", "no_such_set", 1, 0, {}, 1.0).start()
