"""What the command line lists and completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anypo
from anypo.cli import app as cli
from anypo.cli.completion import method_names, names_behind, part_names
from anypo.parts.registry import PARTS
from anypo.policies import LIBRARY_POLICIES
from anypo.tasks import LIBRARY_TASKS


@pytest.fixture
def lines(monkeypatch, capsys):
    """Returns what `anypo WORDS` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["anypo", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out.splitlines()

    return run


def test_methods_are_one_line_each_on_80_columns(lines):
    head, *entries, legend = lines("methods")
    assert head.split() == ["ENTRY", "YEAR", "BASE", "CLAIM", "CHANGES", "AND", "TITLE"]
    assert sorted(line.split()[0] for line in entries) == sorted([*anypo.methods(), *anypo.procedures()])
    assert max(map(len, entries)) <= 80
    claims = {line[head.index("CLAIM") : head.index("CHANGES")].strip() for line in entries}
    assert claims <= {"yes", "mixed", "no", ""}
    assert all(card in legend for card in ("CLAIM: ", "anypo explain ENTRY"))


def test_options_of_a_task_are_listed_with_their_ranges(lines):
    shown = " ".join(" ".join(lines("tasks", "bandit")).replace("│", " ").split())
    assert "a number at least 0" in shown
    assert "a whole number" in shown


def test_rewards_are_listed_beside_tasks_and_policies(lines):
    shown = "\n".join(lines("tasks"))
    assert all(name in shown for name in ("exact", "numeric", "FILE.py:FUNCTION", "model:RUN", "jsonl:FILE", "mlp"))


def test_what_is_completed_is_what_is_registered():
    assert sorted(method_names()) == anypo.methods()
    expected = {(stage, name) for stage, known in PARTS.items() for name, cls in known.items() if is_ours(cls)}
    assert set(part_names()) == expected
    for flag, entries in (("task", LIBRARY_TASKS), ("policy", LIBRARY_POLICIES)):
        assert [name.rstrip(":") for name in names_behind(flag)] == [e.form.partition(":")[0] for e in entries]


def is_ours(cls):
    return cls.__module__.startswith("anypo.parts.")


@pytest.mark.parametrize(
    ("typed", "some"),
    [
        (["train", "gr"], {"grpo", "grpo-vps"}),
        (["train", "grpo", "--task", "js"], {"jsonl:"}),
        (["train", "grpo", "--lr", "0.1", "--policy", "m"], {"mlp"}),
        (["train", "grpo", "--trust", "cl"], {"clip"}),
        (["explain", "dap"], {"dapo"}),
        (["compare", "grpo", "rlo"], {"rloo"}),
        (["verify", "mhp"], {"mhpo"}),
        (["tasks", "su"], {"sums"}),
    ],
)
def test_names_are_completed_without_waiting_for_torch(typed, some):
    script = (
        "import sys\nfrom anypo.cli import main\nsys.argv = ['anypo']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\nLOADED', [name for name in ('torch', 'transformers', 'gymnasium', 'numpy') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": str(Path(anypo.__file__).parents[1]), "PATH": os.environ["PATH"]}
    environment |= {"_ANYPO_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["anypo", *typed])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=environment | {"COMP_CWORD": str(len(typed))},
    )  # fmt: skip
    names, loaded = done.stdout.rsplit("\nLOADED ", 1)
    assert some <= set(names.split())
    assert all(name.startswith(typed[-1]) for name in names.split())
    assert loaded.strip() == "[]"


def test_methods_as_json_hold_whole_titles(lines):
    cards = json.loads("\n".join(lines("methods", "--json")))
    assert all(not card["title"].endswith("…") for card in cards)
