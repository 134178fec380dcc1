from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anypo.errors import RunError, UsageError
from anypo.tasks.text.rewards import Reward, load_reward, make_reward


def call(reward: Any, completions: list[Any], prompts: list[Any] | None = None, **columns: list) -> list[float | None]:
    prompts = prompts or [f"prompt {i}" for i in range(len(completions))]
    return make_reward(reward)(prompts, completions, [[i] for i in range(len(completions))], columns)


def one_sentence(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# the contract


def test_a_function_gets_prompts_completions_ids_and_every_column_row_aligned():
    seen: dict[str, Any] = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.5, None]

    assert call(reward, ["a", "b"], answer=["x", "y"], level=[1, 2]) == [0.5, None]
    assert seen == {
        "prompts": ["prompt 0", "prompt 1"],
        "completions": ["a", "b"],
        "completion_ids": [[0], [1]],
        "answer": ["x", "y"],
        "level": [1, 2],
    }


def test_a_function_that_names_its_columns_gets_just_those():
    assert call(lambda completions, level: [x * 2 for x in level], ["a", "b"], answer=["x", "y"], level=[1, 2]) == [
        2,
        4,
    ]


def test_async_functions_run_to_their_end():
    async def reward(completions, **_):
        await asyncio.sleep(0.01)
        return [float(len(c)) for c in completions]

    assert call(reward, ["a", "bbb"]) == [1, 3]


def test_booleans_and_array_scalars_are_numbers():
    assert call(lambda completions: [True, np.float32(0.5), torch.tensor(2.0)], ["a", "b", "c"]) == [1, 0.5, 2]
    assert call(lambda completions: torch.ones(2), ["a", "b"]) == [1, 1]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2 completions"),
        (0.5, "must return a list"),
        ("ab", "must return a list"),
        ([1.0, math.nan], r"returned nan for row 1 \(prompt 'prompt 1'\)"),
        ([math.inf, 1.0], r"returned inf for row 0 \(prompt 'prompt 0'\)"),
        ([1.0, "good"], r"returned 'good' for row 1"),
        ([1.0, "2"], r"returned '2' for row 1"),
        ([[1.0, 2.0], 1.0], r"returned \[1\.0, 2\.0\] for row 0"),
        (torch.ones(2, 2), r"for row 0"),
    ],
)
def test_what_is_not_one_finite_number_per_completion_names_function_and_row(returned: Any, says: str):
    def my_reward(completions):
        return returned

    with pytest.raises(RunError, match=says) as error:
        call(my_reward, ["a", "b"])
    assert "'my_reward'" in one_sentence(error)


def test_a_function_that_raises_is_named_with_what_it_raised():
    def my_reward(completions):
        raise KeyError("answr")

    with pytest.raises(RunError, match="'my_reward' raised KeyError: 'answr'") as error:
        call(my_reward, ["a", "b"])
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_timeout_of_the_functions_own_is_something_it_raised(kind: str):
    def plain(completions):
        raise TimeoutError("the judge is away\nfor long")

    async def asynchronous(completions):
        plain(completions)

    with pytest.raises(RunError, match="raised TimeoutError: the judge is away") as error:
        call(plain if kind == "plain" else asynchronous, ["a"])
    one_sentence(error)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_that_hangs_ends_at_its_time_limit(kind: str):
    forever = threading.Event()

    def plain(completions):
        forever.wait()

    async def asynchronous(completions):
        await asyncio.Event().wait()

    fn = plain if kind == "plain" else asynchronous
    start = time.monotonic()
    with pytest.raises(RunError, match=r"did not return within 0\.2 s") as error:
        call(Reward(fn, timeout=0.2), ["a"])
    assert time.monotonic() - start < 2
    assert fn.__name__ in one_sentence(error)
    forever.set()


@pytest.mark.parametrize(("policy", "instead"), [("drop", None), (-1.0, -1.0), (0.0, 0.0)])
def test_a_bad_row_costs_only_itself_where_failures_may_be_dropped_or_valued(policy: Any, instead: float | None):
    forever = threading.Event()

    def reward(completions, answer):
        (c,) = completions
        if c == "hang":
            forever.wait()
        return {"nan": [math.nan], "long": [1, 2], "raise": None}.get(c, [float(answer[0])])

    strict = Reward(reward, timeout=0.2, on_error=policy, concurrency=2)
    completions = ["fine", "nan", "long", "raise", "hang", "fine"]
    got = strict(["p"] * 6, completions, [[0]] * 6, {"answer": list(range(6))})
    assert got == [0, instead, instead, instead, instead, 5]
    assert strict.failures == 4
    forever.set()


def test_no_more_rows_of_an_asynchronous_reward_are_scored_at_once_than_the_cap_allows():
    running = most = 0

    async def reward(completions):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return [1.0]

    assert Reward(reward, on_error="drop", concurrency=3)(["p"] * 12, ["c"] * 12, [[0]] * 12, {}) == [1.0] * 12
    assert most == 3


# before a run


def test_a_function_of_a_file_keeps_its_name_and_may_import_its_neighbours(tmp_path: Path):
    (tmp_path / "neighbour_of_the_reward.py").write_text("BONUS = 2.0\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom neighbour_of_the_reward import BONUS\n"
        "@dataclass\nclass Setting:\n    x: float = BONUS\n"
        "def length(completions, **kwargs):\n    return [Setting().x * len(c) for c in completions]\n"
    )
    reward = load_reward(f"{tmp_path / 'mine.py'}:length")
    assert reward.name == "length"
    assert call(reward, ["ab", ""]) == [4, 0]


def test_what_cannot_be_loaded_is_refused_before_the_run(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def length(completions):\n    return []\n")
    (tmp_path / "broken.py").write_text("def length(:\n")
    (tmp_path / "none.py").write_text("def nothing():\n    return []\ndef positional(x, /):\n    return []\n")
    for spec, says in [
        (f"{tmp_path}/absent.py:length", "no file"),
        (f"{tmp_path}/mine.py:lenght", "it has length"),
        (f"{tmp_path}/mine.py", "FILE.py:FUNCTION"),
        (f"{tmp_path}/broken.py:length", "SyntaxError"),
        (f"{tmp_path}/none.py:nothing", "takes no arguments"),
        (f"{tmp_path}/none.py:positional", "positional-only"),
        ("exakt", "did you mean 'exact'"),
        ("regex:(", "not a regular expression"),
    ]:
        with pytest.raises(UsageError, match=says) as error:
            make_reward(spec)
        one_sentence(error)
    with pytest.raises(UsageError, match="on_error"):
        Reward(lambda completions: [], on_error="ignore")


def test_a_column_that_is_missing_is_refused_naming_the_record():
    with pytest.raises(UsageError, match="data line 7 has no 'answer', which the reward 'exact' needs"):
        make_reward("exact").check([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], lambda i: f"data line {i + 6}")
    make_reward("regex:x").check([{"prompt": "a"}], str)


# built-in verifiers


def test_exact():
    assert call("exact", [" a\n", "a b", "1"], answer=["a", "ab", 1]) == [1, 0, 1]


def test_numeric_compares_the_last_numbers():
    completions = ["so 3 and 1,234.50", "it is -7", "10-3", "none", "2.0", "$5", "1e3", "x = .5."]
    answer = ["1234.5", -7, "3", "3", 2, "#### 5", 1000, "0.5"]
    assert call("numeric", completions, answer=answer) == [1, 1, 1, 0, 1, 1, 1, 1]
    assert call("numeric", ["12345678901234567891"], answer=["12345678901234567890"]) == [0]
    assert call("numeric", ["3"], answer=["unknown"]) == [None]


def test_math_understands_latex():
    completions = [r"so $\frac{1}{2}$", r"\boxed{0.5}", "the answer is $2x+1$", "$3$", "no idea"]
    answer = ["1/2", r"\frac{1}{2}", "$1+2x$", "4", "4"]
    assert call("math", completions, answer=answer) == [1, 1, 1, 0, 0]


def test_math_works_outside_the_main_thread():
    scores: list[Any] = []
    thread = threading.Thread(target=lambda: scores.append(call("math", ["$0.5$"], answer=["1/2"])))
    thread.start()
    thread.join()
    assert scores == [[1]]


def test_regex_takes_its_pattern_from_the_record_or_the_name():
    assert call("regex", ["a1", "ab"], answer=[r"\d$", r"\d$"]) == [1, 0]
    assert call(r"regex:^\d+:$", ["12:", "a"]) == [1, 0]


def test_chat_completions_are_judged_by_their_text():
    chat = [[{"role": "assistant", "content": "4"}]]
    for name in ("exact", "numeric", "math", "regex"):
        assert call(name, chat, answer=["4"]) == [1]
