"""What a shell completes: names of methods, parts, tasks and policies.

They are read from the library's source, for importing it would wait for torch at every press of the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anypo
from anypo.plugins import installed

HOME = Path(anypo.__file__).parent
METHOD = re.compile(r"^ +id=\"([\w.-]+)\"", re.M)
PART = re.compile(r"^@register_part\(\"(\w+)\"\)\n(?:@.*\n)*class (\w+)", re.M)
ENTRY = re.compile(r"^    (?:Entry|Kind)\(\s*\"([\w-]+:?)", re.M)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
GROUPS = {"task": "tasks", "policy": "policies", "reward": "rewards"}
"""Flags that take a name, and the entry points that add some."""


def complete_method(context: Any, parameter: Any, incomplete: str) -> list[str]:
    """Return the ids of methods that begin as the word does; Click calls it.

    Args:
        context, parameter: of the command line.
        incomplete: the word.
    """
    return [name for name in sorted([*method_names(), *installed("methods")]) if name.startswith(incomplete)]


def complete_words(context: Any, parameter: Any, incomplete: str) -> list[str]:
    """Return what begins as the word does: behind `--task`, `--policy` or a stage its names, else ids of methods.

    Args:
        context: holds the words before.
        parameter: of the command line.
        incomplete: the word.
    """
    before = context.params.get(parameter.name) or ()
    if not (before and str(before[-1]).startswith("--")):
        return complete_method(context, parameter, incomplete)
    flag = str(before[-1])[2:]
    return [name for name in sorted(names_behind(flag)) if name.startswith(incomplete)]


def complete_task(context: Any, parameter: Any, incomplete: str) -> list[str]:
    """Return the names of tasks that begin as the word does.

    Args:
        context, parameter: of the command line.
        incomplete: the word.
    """
    return [name for name in names_behind("task") if name.startswith(incomplete)]


def names_behind(flag: str) -> list[str]:
    """Return the names that a flag of `train` takes."""
    if flag == "reward":
        return ["exact", "numeric", "math", "regex", "model:", *installed("rewards")]
    if flag in GROUPS:
        source = (HOME / GROUPS[flag] / "__init__.py").read_text()
        return [*ENTRY.findall(source), *installed(GROUPS[flag])]
    added = [tuple(name.split(".", 1)) for name in installed("parts")]
    return [name for stage, name in (*part_names(), *added) if stage == flag]


def method_names() -> list[str]:
    """Return the ids of the library's methods."""
    return [name for path in (HOME / "methods").rglob("*.py") for name in METHOD.findall(path.read_text())]


def part_names() -> Iterator[tuple[str, str]]:
    """Stage and name of every part of the library."""
    for path in (HOME / "parts").rglob("*.py"):
        for stage, name in PART.findall(path.read_text()):
            yield stage, HUMP.sub("-", name).lower()
