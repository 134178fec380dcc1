"""A run's folder belongs to one process at a time, and is free again where nothing was trained in it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from killed import Command

from anypo import config as configuration
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.runs.claim import lock_folder
from anypo.runs.folder import continue_run, create

BANDIT = {"method": "grpo", "task": "bandit", "steps": 4}


def start(folder, **values):
    return create(configuration.from_dict({**BANDIT, "out": str(folder), **values}))


def hold(folder, seconds=60):
    """A process that holds the lock of a folder, once it has it."""
    code = (
        "import sys, time, pathlib; from anypo.runs.claim import lock_folder\n"
        "lock = lock_folder(pathlib.Path(sys.argv[1])); print('locked', flush=True); time.sleep(float(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    return process


def test_two_trainings_with_one_out_are_one_run_and_one_sentence(tmp_path):
    both = [Command(tmp_path, "train", "grpo", "--task", "bandit", "--steps", 30, "--out", "r") for _ in range(2)]
    codes, _, errors = zip(*(command.end() for command in both), strict=True)
    assert sorted(codes) == [0, 2]
    (refusal,) = (text for code, text in zip(codes, errors, strict=True) if code)
    assert refusal.count("\n") == 1
    assert "r is being trained by process" in refusal or "r already holds a run" in refusal
    batches = [json.loads(text)["batch"] for text in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert batches == list(range(31))


def test_two_trainings_without_out_get_a_folder_each(tmp_path):
    both = [Command(tmp_path, "train", "grpo", "--task", "bandit", "--steps", 3) for _ in range(2)]
    assert [command.end()[0] for command in both] == [0, 0]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["grpo-bandit-0", "grpo-bandit-0-2"]


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path):
    start(tmp_path / "r")
    holder = hold(tmp_path / "r")
    with pytest.raises(UsageError, match=rf"r is being trained by process {holder.pid}$"):
        continue_run(tmp_path / "r")
    holder.kill()
    holder.wait()
    learn(continue_run(tmp_path / "r"))
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 5


def test_twenty_claims_of_one_folder_at_once_have_one_winner(tmp_path):
    from multiprocessing import get_context

    with get_context("fork").Pool(8) as pool:
        verdicts = pool.starmap(claimed, [(tmp_path / f"r{i // 20}", i) for i in range(60)], chunksize=1)
    for at in (0, 20, 40):
        refused = [sentence for sentence in verdicts[at : at + 20] if sentence]
        assert len(refused) == 19
        assert all("is being trained by process" in text or "already holds a run" in text for text in refused)


def test_of_two_processes_that_train_in_one_folder_one_does_and_one_is_refused_every_time(tmp_path):
    from multiprocessing import get_context

    forks = get_context("fork")
    gate = forks.Barrier(2)
    with forks.Pool(2, initializer=take_gate, initargs=(gate,)) as pool:
        verdicts = pool.starmap(train_together, [(tmp_path / f"r{i // 2}", i % 2) for i in range(40)], chunksize=1)
    for at in range(20):
        (refused,) = filter(None, verdicts[2 * at : 2 * at + 2])
        assert "is being trained by process" in refused or "already holds a run" in refused
        assert "\n" not in refused
        lines = (tmp_path / f"r{at}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["batch"] for line in lines] == [0, 1, 2, 3, 4]


def take_gate(gate):
    """Keep what both processes wait at."""
    global GATE
    GATE = gate


def train_together(folder, seed):
    """Train there once the other process is about to as well; return why that was refused."""
    GATE.wait()
    try:
        learn(start(folder, seed=seed))
    except UsageError as error:
        return str(error)
    return ""


def claimed(folder, seed):
    """Start a run there; return why that was refused."""
    try:
        start(folder, seed=seed)
    except UsageError as error:
        return str(error)
    return ""


def test_a_child_that_outlives_a_killed_run_does_not_keep_the_folder(tmp_path):
    (tmp_path / "r").mkdir()
    code = (
        "import os, sys, time, pathlib; from anypo.runs.claim import lock_folder\n"
        "lock = lock_folder(pathlib.Path(sys.argv[1])); child = os.fork()\n"
        "print(child, flush=True) if child else None; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        lock_folder(tmp_path / "r")
        os.kill(child, 0)  # it is alive
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_whose_run_was_killed_before_it_began_is_free(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").write_text("999999\n")
    (tmp_path / "r" / "anchor-ref.safetensors").write_bytes(b"half")
    learn(start(tmp_path / "r"))
    with pytest.raises(UsageError, match="already holds a run"):
        start(tmp_path / "r")


@pytest.mark.parametrize("existed", [False, True], ids=["new", "existing"])
def test_a_first_evaluation_that_fails_leaves_no_run(tmp_path, existed, tiny_model):
    (tmp_path / "r.py").write_text("def bad(completions, **_):\n    raise KeyError('gold')\n")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(6)))
    if existed:
        (tmp_path / "out").mkdir()
    words = [
        "train",
        "grpo",
        "--task",
        "jsonl:p.jsonl",
        "--reward",
        "r.py:bad",
        "--policy",
        f"hf:{tiny_model('llama')}",
    ]
    code, _, errors = Command(tmp_path, *words, "--task.max_new", 4, "--steps", 1, "--out", "out").end()
    assert code == 1
    assert errors.count("\n") == 1
    assert (tmp_path / "out").exists() == existed
    if existed:
        assert not list((tmp_path / "out").iterdir())


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    start(tmp_path / "r")
    (tmp_path / "r" / "metrics.jsonl").write_text('{"batch": 0, "done": 0}\n{"batch": 1')
    learn(continue_run(tmp_path / "r"))
    learn(start(tmp_path / "whole"))
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_the_untrained_policy_is_measured_once(tmp_path):
    run = start(tmp_path / "r")

    def stop(record):
        if record["batch"] == 1:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        learn(run, stop)
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["batch-00000000"]
    learn(continue_run(tmp_path / "r"))
    batches = [json.loads(text)["batch"] for text in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert batches == [0, 1, 2, 3, 4]


def test_a_stray_folder_beside_the_checkpoints_blocks_nothing(tmp_path):
    learn(start(tmp_path / "r", steps=2))
    for name in ("batch-old", "batch-00000002.bak", "batch-zz"):
        (tmp_path / "r" / "checkpoints" / name).mkdir()
    assert continue_run(tmp_path / "r").batch == 2


def test_a_living_run_names_its_process_until_it_ends(tmp_path):
    run = Command(tmp_path, "train", "grpo", "--task", "bandit", "--steps", 100000, "--out", "r")
    while not (tmp_path / "r" / "metrics.jsonl").exists():
        time.sleep(0.01)
    with pytest.raises(UsageError, match=f"being trained by process {run.process.pid}"):
        start(tmp_path / "r")
    run.process.kill()
    run.end()
    assert continue_run(tmp_path / "r", steps=1).claim is not None


def test_a_folder_that_names_another_file_executes_it_only_when_told(tmp_path, tiny_model):
    (tmp_path / "fair.py").write_text("def score(completions, **_):\n    return [1.0] * len(completions)\n")
    (tmp_path / "other.py").write_text(
        "open('executed', 'w')\ndef score(completions, **_):\n    return [0.0] * len(completions)\n"
    )
    rows = "".join(json.dumps({"prompt": f"{i}="}) + "\n" for i in range(6))
    (tmp_path / "p.jsonl").write_text(rows)
    run = Command(
        tmp_path, *("train", "grpo", "--task", "jsonl:p.jsonl", "--reward", "fair.py:score", "--steps", "1", "--out", "r"),
        *("--policy", f"hf:{tiny_model('llama')}", "--task.max_new", "4", "--collect.samples", "2"),
    )  # fmt: skip
    assert run.end()[0] == 0
    config = tmp_path / "r" / "config.yaml"
    config.write_text(config.read_text().replace("fair.py", "other.py"))
    code, _, errors = Command(tmp_path, "evaluate", "r").end()
    assert (code, "add --allow-code" in errors) == (2, True)
    code, _, _ = Command(tmp_path, "sample", "r", "1=").end()
    assert (code, (tmp_path / "executed").exists()) == (0, False)
    code, _, errors = Command(tmp_path, "evaluate", "r", "--allow-code").end()
    assert (code, "executes" in errors, (tmp_path / "executed").exists()) == (0, True, True)
