"""Digests change with what decides a method's numbers, and with nothing else."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import anypo
from anypo.evidence import verify
from anypo.evidence.digest import digest, digests, stamp
from anypo.method.method import Method
from anypo.parts.registry import PARTS
from anypo.parts.trust import Clip
from anypo.stages import SLOTS

SOURCE = Path(anypo.__file__).parent
Digests = dict[str, str]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source."""
    return shutil.copytree(SOURCE, tmp_path / "src" / "anypo", ignore=shutil.ignore_patterns("__pycache__"))


def digests_of(tree: Path) -> Digests:
    environment = os.environ | {"PYTHONPATH": str(tree.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "anypo.evidence.digest"]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=tree.parent
    ).stdout
    return {name: value for value, name in map(str.split, printed.splitlines())}


def edit(tree: Path, change: Callable[[str], str], pattern: str = "*.py") -> None:
    for path in tree.rglob(pattern):
        path.write_text(change(path.read_text()))


def users(name: str) -> set[str]:
    """The methods in which an instance of the class of that name, or of one derived from it, stands in some phase."""

    def classes(value: Any) -> Iterator[str]:
        yield from (cls.__name__ for cls in type(value).__mro__)
        for field in vars(value).values() if hasattr(value, "__dataclass_fields__") else ():
            yield from classes(field)

    def parts(method: Method) -> list[Any]:
        return [part for phase in method.phases for slot in SLOTS for part in phase.parts(slot)]

    return {n for n in anypo.methods() if any(name in classes(part) for part in parts(anypo.method(n)))}


def test_layout_comments_docstrings_and_places_do_not_count(tree: Path) -> None:
    """Every class gets another docstring and every line a comment above it; a module moves."""
    (tree / "parts" / "trust" / "clip.py").rename(tree / "parts" / "trust" / "clipping.py")
    edit(tree, lambda text: text.replace("anypo.parts.trust.clip ", "anypo.parts.trust.clipping "))
    edit(tree / "parts" / "trust", lambda text: text.replace("\n@register", "\n\n\n# a part\n@register"))
    edit(tree / "parts", lambda text: text.replace(':\n    """', ':\n    """Other words. '))
    edit(tree / "methods", lambda text: '"""Another page."""\n' + text.replace(",\n", ",  # as published\n"))
    assert digests_of(tree) == digests()


def changed_by(tree: Path) -> set[str]:
    before, after = digests(), digests_of(tree)
    return {name for name in before if after[name] != before[name]}


@pytest.mark.parametrize("name", ["Clip", "HazardModulated", "Temperature"])
def test_a_changed_part_changes_the_digests_of_exactly_the_methods_that_use_it(name: str, tree: Path) -> None:
    head = re.compile(rf"(class {name}\b.*\n)")
    edit(tree / "parts", lambda text: head.sub(r"\1    edited = True\n", text))
    assert changed_by(tree) == users(name) != set()


def test_a_changed_function_changes_the_digests_of_exactly_the_methods_whose_parts_call_it(tree: Path) -> None:
    head = re.compile(r"(def group_median\(.*\n)")
    edit(tree / "parts", lambda text: head.sub(r"\1    edited = True\n", text))
    callers = [cls for known in PARTS.values() for cls in known.values() if "group_median(" in inspect.getsource(cls)]
    assert changed_by(tree) == set().union(*(users(cls.__name__) for cls in callers)) != set()


def test_a_changed_file_changes_the_digests_of_its_methods(tree: Path) -> None:
    edit(tree / "methods", lambda text: text.replace('id="mhpo"', 'id="mhpo", ordered=True'))
    assert changed_by(tree) == {"mhpo"}


def test_settings_phases_and_cards_count() -> None:
    ppo, bupo = anypo.method("ppo"), anypo.method("bupo")
    assert digest(anypo.method("ppo")) == digest(ppo)
    assert digest(anypo.method("ppo", trust=Clip(0.2, 0.21))) != digest(ppo)
    assert digest(Method(replace(ppo.card, claim="Another."), **ppo.stages)) != digest(ppo)
    phase = bupo.later[0]
    assert digest(Method(bupo.card, (replace(phase, after=phase.after + 1),), **bupo.stages)) != digest(bupo)
    assert digest(bupo.cycle(60)) != digest(bupo)


def test_a_method_without_a_file_has_a_digest() -> None:
    card = replace(anypo.method("grpo").card, id="not-registered", base=None)
    assert digest(anypo.method("grpo").but(card=card)) != digest(anypo.method("grpo"))


def test_stamping_fills_the_rows_without_a_digest_and_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    rows = {"ppo": {"verdict": "mixed"}, "grpo": {"digest": "old", "effect": 0.5}, "former": {"effect": 1.0}}
    path.write_text(json.dumps({"methods": rows}))
    assert stamp(path) == ["ppo"]
    wanted = rows | {"ppo": {"verdict": "mixed", "digest": digest(anypo.method("ppo"))}}
    assert json.loads(path.read_text())["methods"] == wanted
    assert stamp(path, overwrite=True) == ["grpo", "ppo"]
    assert json.loads(path.read_text())["methods"]["grpo"] == {"digest": digest(anypo.method("grpo")), "effect": 0.5}


def test_a_verified_method_is_recorded_with_its_digest(tmp_path: Path) -> None:
    verify.record_verdicts(tmp_path / "ledger.json", {"bc": verify.examine("bc", [0], quick=True, cases=1)})
    row = json.loads((tmp_path / "ledger.json").read_text())["methods"]["bc"]
    assert row["digest"] == digest(anypo.method("bc"))
