"""What `anypo tasks NAME` and docs/tasks.md say of a task's options."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from killed import Command

from anypo.errors import UsageError
from anypo.tasks import LIBRARY_TASKS, Entry, describe_options, entry_of, find_entry, make_task, resolve_factory
from anypo.tasks.options import explain_parameters

ROOT = Path(__file__).parents[2]
DICE = '''
from typing import Annotated

class Dice:
    """Dice that are thrown.

    sides: of each of them, such as 6.
    colour: of the paint. fair: whether every side is as likely.
    """

    def __init__(self, *, sides: Annotated[int, "at least 2"] = 6, fair: bool = True, colour: str | None = None, weight=(1, 2)):
        pass
'''


@pytest.mark.parametrize("entry", LIBRARY_TASKS, ids=lambda entry: entry.form)
def test_every_option_of_every_task_is_explained(entry: Entry) -> None:
    options = {option.name: option for option in describe_options(entry)}
    parameters = inspect.signature(resolve_factory(entry.factory)).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty}.items() <= {
        name: option.default for name, option in options.items()
    }.items()
    assert [name for name, option in options.items() if not option.about or not option.kind] == []


def test_options_that_a_factory_hands_on_are_listed_once() -> None:
    names = [option.name for option in describe_options(find_entry("minari:x")[0])]
    assert sorted(names) == [
        "env",
        "env_kwargs",
        "envs",
        "eval_episodes",
        "expert",
        "info_rewards",
        "scale_reward",
        "seed",
    ]


def test_options_of_ones_own_task_are_read_from_its_signature_and_docstring(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DICE)
    mine, _ = find_entry(f"{tmp_path / 'mine.py'}:Dice")
    options = {o.name: (o.kind, o.value, o.about) for o in describe_options(mine)}
    assert options == {
        "sides": ("int", "6", "of each of them, such as 6"),
        "fair": ("bool", "true", "whether every side is as likely"),
        "colour": ("str | None", "none", "of the paint"),
        "weight": ("", "(1, 2)", ""),
    }


def test_a_docstring_is_read_up_to_the_next_entry_or_blank_line() -> None:
    doc = """Make it, with seed: a word that is a parameter.

    Args:
        size, number: how
            many. And more.
        other: no parameter.
        seed: of it (none: 0); or else.

    Raises:
        size: never.
    """
    read = explain_parameters(inspect.cleandoc(doc), ["size", "number", "seed", "absent"])
    assert read == {"size": "how many", "number": "how many", "seed": "of it (none: 0); or else"}


def test_a_task_without_options_and_an_unknown_task() -> None:
    assert describe_options(entry_of("nothing", lambda: None)) == []
    with pytest.raises(UsageError, match=r"unknown task 'jsonx'; .*jsonl:FILE"):
        find_entry("jsonx")
    with pytest.raises(UsageError, match=r"unknown option of the task sums: 'held'; .*heldout"):
        make_task({"name": "sums", "held": 0.1}, 0)


def test_the_command_lists_options_and_the_page_is_current(tmp_path: Path) -> None:
    code, lines, errors = Command(tmp_path, "tasks", "gym:CartPole-v1").end()
    assert code == 0, errors
    shown = "\n".join(lines)
    assert all(name in shown for name in ("envs", "eval_episodes", "bool | None", "held-out episodes"))
    code, _, errors = Command(tmp_path, "tasks", "--report", "tasks.md").end()
    assert code == 0, errors
    assert (tmp_path / "tasks.md").read_text() == (ROOT / "docs/tasks.md").read_text(), (
        "write it anew: anypo tasks --report docs/tasks.md"
    )
