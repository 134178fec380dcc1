"""Reward functions are called as in a script of their own, within their time limit, and leave by one exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anypo.cli import app as cli
from anypo.config import from_dict
from anypo.errors import RunError, UsageError
from anypo.loops.learn import learn
from anypo.runs.build import build
from anypo.tasks.text.rewards import Reward, make_reward
from anypo.tasks.text.task import TextTask

OWN = """
import asyncio, contextvars, signal, sqlite3, threading

gate, lock = asyncio.Semaphore(1), asyncio.Lock()
db = sqlite3.connect(":memory:")
db.execute("create table seen (x)")
local, variable = threading.local(), contextvars.ContextVar("variable")
local.value, _ = 1.0, variable.set(1.0)
loop = asyncio.get_event_loop()
clients, ticks = [], []

def mathed(completions, answer, **_):
    from math_verify import parse, verify
    found = []
    for a in answer:
        try:
            found.append(float(verify(parse(f"${a}$"), parse(f"${a}$"))))
        except Exception:
            found.append(0.0)
    return found

def alarmed(completions, **_):
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(5); signal.alarm(0); signal.signal(signal.SIGALRM, before)
    return [1.0] * len(completions)

async def gated(completions, **_):
    async def one(c):
        async with gate, lock:
            await asyncio.sleep(0.001)
            return 1.0
    return list(await asyncio.gather(*(one(c) for c in completions)))

def stored(completions, **_):
    db.executemany("insert into seen values (?)", [(c,) for c in completions])
    return [1.0] * len(completions)

def on_the_loop(completions, **_):
    async def f():
        return [1.0 for c in completions]
    return asyncio.get_event_loop().run_until_complete(f())

def runs_its_own(completions, **_):
    async def f():
        return [1.0 for c in completions]
    return asyncio.run(f())

async def cached_client(completions, **_):
    if not clients:
        clients.append(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
        port = clients[0].sockets[0].getsockname()[1]
        clients.append(await asyncio.open_connection("127.0.0.1", port))
    clients[1][1].write(b"x")
    await clients[1][1].drain()
    return [1.0] * len(completions)

async def background(completions, **_):
    async def tick():
        while True:
            await asyncio.sleep(0)
            ticks.append(1)
    if not ticks:
        background.task = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    return [float(not background.task.done())] * len(completions)

def thread_local(completions, **_):
    return [local.value * variable.get() * float(loop is asyncio.get_event_loop())] * len(completions)

async def async_thread_local(completions, **_):
    return [local.value * variable.get() * float(loop is asyncio.get_running_loop())] * len(completions)
"""
NAMES = re.findall(r"^(?:async )?def (\w+)", OWN, re.MULTILINE)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "own.py"
    path.write_text(OWN)
    return path


def call(reward: Any, completions: list[Any], **columns: list) -> list[float | None]:
    prompts = [f"prompt {i}" for i in range(len(completions))]
    return make_reward(reward)(prompts, completions, [[i] for i in range(len(completions))], columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_does_what_it_would_in_a_script_of_its_own_call_after_call(name: str, rewards: Path):
    reward = make_reward(f"{rewards}:{name}")
    for _ in range(3):
        assert call(reward, ["a", "b"], answer=["1/2", "2"]) == [1, 1]


def test_a_run_gets_every_reward_from_start_to_end(rewards: Path, tiny_model: Callable[..., Path], tmp_path: Path):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(6)))
    task = {"name": f"jsonl:{data}", "reward": [f"{rewards}:{name}" for name in NAMES], "max_new": 3}
    policy = {"name": f"hf:{tiny_model('llama')}"}
    records: list[dict[str, Any]] = []
    run = build(
        from_dict(
            {
                "method": "grpo",
                "task": task,
                "policy": policy,
                "steps": 2,
                "collect": {"requests": 2, "samples": 2},
                "evaluate_every": 1,
            }
        )
    )
    learn(run, records.append)
    assert [r["eval/reward"] for r in records] == [len(NAMES)] * 3
    assert all(r[f"reward/{name}"] == 1 for r in records[1:] for name in NAMES)


def raises(error: BaseException) -> Callable[..., Any]:
    def mine(completions):
        raise error

    return mine


EXITS = [
    (raises(SystemExit(0)), "raised SystemExit: 0"),
    (raises(KeyboardInterrupt()), "raised KeyboardInterrupt"),
    (raises(asyncio.CancelledError()), "raised CancelledError"),
    (raises(GeneratorExit()), "raised GeneratorExit"),
    (lambda completions: [10**400] * len(completions), "returned 1000"),
    (lambda completions: [10**5000] * len(completions), "returned a huge int"),
    (lambda completions: [1e300] * len(completions), r"returned 1e\+300 for row 0"),
]


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize(("fn", "says"), EXITS, ids=[says for _, says in EXITS])
def test_whatever_way_a_reward_leaves_is_one_sentence_or_what_on_error_says(fn: Any, says: str, kind: str):
    async def asynchronous(completions):
        return fn(completions)

    mine = fn if kind == "plain" else asynchronous
    with pytest.raises(RunError, match=says) as error:
        call(mine, ["a", "b"])
    assert "\n" not in str(error.value)
    assert call(Reward(mine, on_error="drop"), ["a", "b"]) == [None, None]
    assert call(Reward(mine, on_error=-1.0), ["a", "b"]) == [-1, -1]


def test_the_users_own_interrupt_ends_the_run_whatever_the_reward_does():
    async def asynchronous(completions):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(5)

    def plain(completions):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    for mine in (plain, asynchronous):
        with pytest.raises(KeyboardInterrupt):
            call(Reward(mine, on_error="drop"), ["a"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def busy_matching(completions):
    return [float(re.search("(a+)+$", "a" * 40 + "b") is not None)] * len(completions)


def busy_catching_exceptions(completions):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def waiting(completions):
    threading.Event().wait()


async def blocking_the_loop(completions):
    while True:
        pass


@pytest.mark.parametrize("fn", [busy_matching, busy_catching_exceptions, waiting, blocking_the_loop])
def test_a_reward_that_waits_or_computes_for_ever_ends_at_its_time_limit_and_the_next_call_works(fn: Any):
    with pytest.raises(RunError, match=r"did not return within 0\.2 s"):
        call(Reward(fn, timeout=0.2), ["a"])
    assert call(Reward(fn, timeout=0.2, on_error=0.0), ["a"]) == [0]
    assert call(lambda completions: [1.0] * len(completions), ["a"]) == [1]


def test_rewards_get_copies_of_what_they_score():
    prompt, columns = [{"role": "user", "content": "hi"}], {"answer": [["x"], ["x"]]}
    completion = [{"role": "assistant", "content": "ho"}]

    def spoils(prompts, completions, completion_ids, answer):
        prompts[0][0]["content"] = completions[0][0]["content"] = "spoilt"
        completion_ids[0].append(7)
        answer[0].append("y")
        return [0.0] * len(answer)

    ids = [[1], [2]]
    Reward(spoils)([prompt, prompt], [completion, completion], ids, columns)
    assert prompt[0]["content"] == "hi"
    assert completion[0]["content"] == "ho"
    assert ids == [[1], [2]]
    assert columns == {"answer": [["x"], ["x"]]}


# built-in verifiers


def test_a_number_beyond_every_exponent_is_a_wrong_answer():
    assert call("numeric", ["1e99999999999999999999", "3"], answer=["3", "3"]) == [0, 1]
    assert call("numeric", ["3"], answer=["1e99999999999999999999"]) == [None]


def test_a_completion_that_hangs_a_pattern_is_wrong_and_the_others_keep_their_scores():
    reward = make_reward("regex:(a+)+$", timeout=6.0)
    hangs = "a" * 40 + "b"
    assert call(reward, ["aa", hangs, "b", hangs, "ca"]) == [1, 0, 0, 0, 1]
    by_record = make_reward("regex", timeout=6.0)
    assert call(by_record, [hangs, "ab"], answer=["(a+)+$", "b"]) == [0, 1]


def test_the_time_limit_and_on_error_hold_for_verifiers():
    hangs = "a" * 40 + "b"
    for on_error, unreached in (("raise", None), ("drop", None), (-1.0, -1.0)):
        reward = make_reward("regex:(a+)+$", timeout=0.6, on_error=on_error)
        assert call(reward, ["aa", *[hangs] * 14, "aa"])[-1] == unreached
    assert make_reward("exact", timeout=3.0, on_error="drop").timeout == 3
    with pytest.raises(UsageError, match="on_error"):
        make_reward("math", on_error="ignore")


def test_a_completion_that_exhausts_memory_or_time_is_wrong_for_math():
    reward = make_reward("math", timeout=12.0)
    hostile = [r"$10^{10^{10^{10}}}$", r"$9999999999!!$", "$" + "(" * 5000 + "1" + ")" * 5000 + "$"]
    assert call(reward, [*hostile, "$0.5$"], answer=["1/2"] * 4) == [0, 0, 0, 1]


def test_bad_patterns_are_refused_before_the_run_naming_their_record():
    records = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "(b"}]
    with pytest.raises(UsageError, match="the answer of record 1 of the records is not a regular expression") as error:
        TextTask("t", records, records, ["regex"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["exact", "numeric", "math", "regex"])
def test_a_null_answer_is_missing_and_matches_no_text(name: str):
    assert call(name, ["None", "None", "4"], answer=[None, None, "4"]) == [None, None, 1]


# measures


def test_a_run_whose_rewards_are_all_missing_ends_in_one_sentence(tiny_model: Callable[..., Path], tmp_path: Path):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(f'{{"prompt": "{i}+1="}}\n' for i in range(6)))
    (tmp_path / "fails.py").write_text("def fails(completions):\n    return [1 / 0]\n")
    task = {"name": f"jsonl:{data}", "reward": [f"{tmp_path}/fails.py:fails"], "max_new": 2, "on_error": "drop"}
    run = build(from_dict({"method": "grpo", "task": task, "policy": {"name": f"hf:{tiny_model('llama')}"}}))
    with pytest.raises(RunError, match=r"no held-out completion of jsonl:.* has a score: every call of fails") as error:
        learn(run)
    assert "\n" not in str(error.value)


def test_the_measure_of_a_task_is_the_mean_of_graded_rewards_and_the_share_that_a_verifier_accepts():
    records = [{"prompt": "a", "answer": "b"}]

    def graded(completions):
        return [0.3] * len(completions)

    assert TextTask("t", records, records, [graded, "exact"]).metric == "reward"
    assert TextTask("t", records, records, ["exact", graded]).metric == "accuracy"


# whose code runs


def test_sampling_from_a_run_executes_no_file_of_its_rewards(tiny_model: Callable[..., Path], tmp_path: Path):
    data, code, proof = tmp_path / "p.jsonl", tmp_path / "own.py", tmp_path / "executed"
    data.write_text("".join(f'{{"prompt": "{i}+1="}}\n' for i in range(6)))
    code.write_text("def own(completions):\n    return [1.0] * len(completions)\n")
    command = [
        "train",
        "grpo",
        "--task",
        f"jsonl:{data}",
        "--reward",
        f"{code}:own",
        "--policy",
        f"hf:{tiny_model('llama')}",
    ]
    sizes = ["--steps", "1", "--collect.requests", "1", "--collect.samples", "2", "--task.max_new", "2"]
    runner, run = CliRunner(), str(tmp_path / "run")
    assert runner.invoke(cli.app, [*command, *sizes, "--out", run]).exit_code == 0
    code.write_text(f"open({str(proof)!r}, 'w')\n" + code.read_text())
    done = runner.invoke(cli.app, ["sample", run, "1+1="])
    assert done.exit_code == 0, done.output
    assert not proof.exists()
