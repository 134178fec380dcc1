"""The house rules hold in every room (a package or module of anypo) and on every page. `-k ROOM` checks one room.

Exceptions and their reasons are in house_exceptions.toml.
"""

from __future__ import annotations

import importlib
import tomllib
from functools import cache
from pathlib import Path

import house
import pytest

import anypo
from anypo.parts.registry import PARTS
from anypo.stages import PIECES, SLOTS

EXCEPTIONS = tomllib.loads((Path(__file__).parent / "house_exceptions.toml").read_text())["exception"]
ROOMS = sorted({source.room for source in house.library()})
KNOW_NO_METHOD = ("evidence", "estimators", "loops", "parts", "policies", "report", "runs", "tasks")


@cache
def violations() -> tuple[tuple[str, house.Violation], ...]:
    """(room, violation) for the whole library and all pages, exceptions included."""
    pairs = [(s.room, v) for s in house.library() for rule in house.RULES.values() for v in rule(s)]
    pairs += [(s.room, v) for s in house.pages() for v in house.words(s)]
    ids = anypo.methods()
    pairs += [(s.room, v) for s in house.library() if s.room in KNOW_NO_METHOD for v in house.method_ids(s, ids)]
    unique = [source for source in house.library() if source.room != "methods"]
    pairs += [(house.Source(house.ROOT / v.path).room, v) for v in house.repeated_names(unique)]
    return tuple(pairs)


def is_excepted(violation: house.Violation, exception: dict[str, str]) -> bool:
    same_place = (violation.rule, violation.path) == (exception["rule"], exception["path"])
    return same_place and exception.get("subject", violation.subject) == violation.subject


@pytest.mark.parametrize("rule", [*house.RULES, "method_ids", "repeated_names"])
@pytest.mark.parametrize("room", ROOMS)
def test_a_room_keeps_a_rule(room: str, rule: str) -> None:
    assert [
        str(v)
        for r, v in violations()
        if (r, v.rule) == (room, rule) and not any(is_excepted(v, e) for e in EXCEPTIONS)
    ] == []


def test_no_page_has_a_banned_word() -> None:
    assert [str(v) for r, v in violations() if r == "pages" and not any(is_excepted(v, e) for e in EXCEPTIONS)] == []


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda e: f"{e['rule']}: {e['path']} {e.get('subject', '')}")
def test_an_exception_has_a_reason_and_is_needed(exception: dict[str, str]) -> None:
    assert set(exception) <= {"rule", "path", "subject", "reason"}
    assert len(exception["reason"].split()) >= 4
    assert any(is_excepted(violation, exception) for _, violation in violations())


@pytest.mark.parametrize("stage", SLOTS)
def test_a_stage_exports_exactly_its_registered_parts(stage: str) -> None:
    package = importlib.import_module(f"anypo.parts.{stage}")
    kinds = [stage, *(kind for kind, of in PIECES.items() if of == stage)]
    registered = [part for kind in kinds for part in PARTS[kind].values() if part.__module__.startswith("anypo.parts")]
    assert sorted(package.__all__) == sorted(part.__name__ for part in registered)
    assert {name for name in package.__all__ if getattr(package, name).__name__ != name} == set()


BROKEN = {
    "sizes": "def endless():\n" + "    pass\n" * 60,
    "words": '"""For whoever reads."""',
    "local_names": "def f(x):\n    for found in x:\n        return found",
    "docstrings": 'def f(x, y, z):\n    """Add."""',
    "kernels_only": "import torch\n\n\nclass F(torch.autograd.Function):\n    pass",
    "method_ids": 'if method == "grpo":\n    x = 1',
    "repeated_names": "def learn():\n    pass",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_seen(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "SOURCE", tmp_path)
    (tmp_path / "new.py").write_text(BROKEN[rule] + "\n")
    source = house.Source(tmp_path / "new.py")
    if rule == "method_ids":
        broken = list(house.method_ids(source, anypo.methods()))
    elif rule == "repeated_names":
        broken = list(house.repeated_names([source, house.Source(tmp_path / "new.py")]))
    else:
        broken = list(house.RULES[rule](source))
    assert [violation.rule for violation in broken][:1] == [rule]


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes",
        "from torch._inductor import config",
        "x = torch.ops.mkldnn._linear_pointwise",
        "from torch.autograd import Function",
        'importlib.import_module("torch._inductor.config")',
    ],
)
def test_what_belongs_to_the_kernels_is_seen_in_every_spelling(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house, "SOURCE", tmp_path)
    for name, count in (("loops.py", 1), ("kernels.py", 0)):
        (tmp_path / name).write_text(code + "\n")
        assert bool(list(house.kernels_only(house.Source(tmp_path / name)))) == bool(count)
