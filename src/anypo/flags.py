"""Command-line flags: each is a dotted path of the run's YAML file, `--trust.low 0.1` is `trust: {low: 0.1}`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from anypo.config import KEYS, METHOD_ALIASES, NAMED
from anypo.errors import UsageError, unknown
from anypo.plain_yaml import read_yaml
from anypo.plugins import installed
from anypo.ranges import read_number
from anypo.stages import SLOTS

TEXTS = frozenset(
    (
        *("method", "out", "metric", "device", "autocast", "compile", "kernels"),
        *("task", "task.name", "task.env", "task.expert", "task.system", "policy", "policy.name", "policy.dtype"),
    )
)
"""Paths whose value is text, taken as it was typed."""


TEXT_LISTS = frozenset(("policy.stop", "trackers"))
"""Paths whose value is text, taken as it was typed, or a list in brackets."""


ALIASES = {
    "lr": "step.lr",
    "learning_rate": "step.lr",
    "total_timesteps": "steps",
    "group_size": "collect.samples",
    "num_generations": "collect.samples",
}
"""Usual words for settings; those of `METHOD_ALIASES` depend on the method."""


REWARDS = ("exact", "numeric", "math", "regex")
"""The rewards of the library that are written as one word; others have a colon behind `regex`, `model` or FILE.py."""


def read_arguments(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield `--flag value` and `--flag=value` as (flag, value), other words as ("", word).

    Raises:
        UsageError: a flag has no value.
    """
    queue = list(arguments)
    while queue:
        flag = queue.pop(0)
        if not flag.startswith("--"):
            yield "", flag
            continue
        path, equals, text = flag[2:].partition("=")
        if not path:
            raise UsageError(f"{flag} names no setting; a flag is --NAME VALUE")
        if not equals:
            if not queue or (queue[0].startswith("--") and len(queue[0]) > 2):
                raise UsageError(f"the flag {flag} needs a value")
            text = queue.pop(0)
        yield path, text


def parse_flags(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """`grpo --trust.low 0.1 --set task.heldout=50` as (["grpo"], nested dictionary).

    Every flag takes a value and is a dotted path of the YAML file. `--set PATH=VALUE` is the same in another spelling;
    `--reward R` is `--task.reward R`, and may be repeated or hold several with commas.
    """
    words: list[str] = []
    values: dict[str, Any] = {}
    rewards: list[str] = []
    for path, text in read_arguments(arguments):
        if not path:
            words.append(text)
            continue
        if path == "set":
            path, equals, text = text.partition("=")
            if not equals:
                raise UsageError(f"--set takes PATH=VALUE, such as --set trust.low=0.1, not {path!r}")
        if path in ("reward", "task.reward"):
            rewards += split_rewards(text)
        else:
            path = whole_path(path)
            assign(values, path, read_value(path, text))
    if rewards:
        assign(values, "task.reward", rewards)
    return words, values


def whole_path(path: str) -> str:
    """Return the path of the YAML file that a flag names; UsageError where there is none."""
    top, dot, rest = path.partition(".")
    plain = top.replace("-", "_")
    if not dot and plain in ALIASES:
        return ALIASES[plain]
    if plain in KEYS or (not dot and plain in METHOD_ALIASES):
        top = plain
    elif top not in SLOTS:
        known = (*KEYS, *SLOTS, *ALIASES, *METHOD_ALIASES, "reward", "set")
        raise unknown("flag", top, [key.replace("_", "-") for key in known], prefix="--")
    return top + dot + rest


def split_rewards(text: str) -> list[str]:
    """Split at commas, but for those behind which no reward of its own begins: `regex:a{1,3}` is one."""
    pieces: list[str] = []
    for piece in text.split(","):
        plain = piece.strip()
        whole = plain in REWARDS or plain in installed("rewards") or re.match(r"(regex|model):|.*\.py:", plain)
        if pieces and plain and not whole:
            pieces[-1] += "," + piece
        elif plain:
            pieces.append(plain)
    return pieces


def read_value(path: str, text: str) -> Any:
    """Read a flag's value: text where text is expected, else as `read_plain` does.

    Args:
        path: of the setting.
        text: as typed.
    """
    ends = text.strip()[:1] + text.strip()[-1:]
    in_brackets = ends == "[]" or (ends == "{}" and path not in TEXT_LISTS)
    if path in TEXTS or ((path in TEXT_LISTS or path in SLOTS) and not in_brackets):
        return text
    return read_plain(path, text)


def read_plain(path: str, text: str) -> Any:
    """Read a value: a number, true, false, none, a list or dictionary in brackets, else text.

    Args:
        path: of the setting, for errors.
        text: as typed.
    """
    plain = text.strip().lower()
    if plain[:1] + plain[-1:] in ("[]", "{}"):
        return read_yaml(text, f"the value of --{path}")
    constants = {"true": True, "false": False, "none": None, "null": None}
    return constants[plain] if plain in constants else read_number(text)


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """values[a][b] = value for the dotted path `a.b`; a bare name on the way becomes {name: ...} or {part: ...}."""
    *parents, last = path.split(".")
    if not all((*parents, last)):
        raise UsageError(f"the path {path!r} has an empty piece")
    at: dict[str, Any] = values
    top = path.split(".")[0]
    for depth, key in enumerate(parents):
        inner = at.get(key)
        if isinstance(inner, str):
            inner = {"name": inner} if depth == 0 and top in NAMED else {"part": inner}
        at[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        at = inner
    if not parents and isinstance(at.get(last), dict) and isinstance(value, str):
        at[last] = {**at[last], ("name" if last in NAMED else "part"): value}
    else:
        at[last] = value
