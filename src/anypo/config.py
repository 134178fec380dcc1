"""A run is one YAML file, and every command-line flag is a dotted path into it: `--trust.low 0.1` is `trust: {low: 0.1}`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from anypo.errors import UsageError, unknown
from anypo.stages import SLOTS


@dataclass
class Config:
    """What a run is made of.

    method: id of a method. task, policy: {name: ..., further options}; the bare name is enough. stages: changes to the
    method's slots; in the file they stand at the top level under the slot's name.
    steps: length of the run in the task's unit (batches; environment steps for Gymnasium). None: the task recommends.
    target: stop once the held-out measure reaches it. evaluate_every, checkpoint_every: in batches; None: ten times a run.
    episodes: held-out episodes or prompts per evaluation (None: the task's own number).
    autocast: bfloat16 autocast of the network: auto (where a GPU has it), on, off. micro: decisions per forward pass.
    device: where the policy lives. threads: CPU threads of torch. trackers: metric writers (tensorboard, wandb, trackio).
    """

    method: str = "grpo"
    task: dict[str, Any] = field(default_factory=lambda: {"name": "sums"})
    policy: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seed: int = 0
    out: str | None = None
    target: float | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    episodes: int | None = None
    autocast: str = "auto"
    micro: int = 16384
    device: str = "auto"
    threads: int | None = None
    trackers: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.yaml: stages at the top level."""
        plain = asdict(self)
        stages = plain.pop("stages")
        return {**plain, **stages}


KEYS = tuple(f.name for f in fields(Config) if f.name != "stages")
NAMED = ("task", "policy")
ALIASES = {"reward": "task.reward"}
"""Short flags for longer paths."""


def from_dict(values: dict[str, Any]) -> Config:
    """A Config from the content of a YAML file; unknown keys are errors that name the nearest valid one."""
    config: dict[str, Any] = {"stages": {}}
    for key, value in values.items():
        if key in SLOTS:
            config["stages"][key] = value
        elif key in NAMED:
            config[key] = {"name": value} if isinstance(value, str) else dict(value)
        elif key in KEYS:
            config[key] = value
        else:
            raise unknown("key", key, (*KEYS, *SLOTS))
    made = Config(**config)
    for key, kind in (
        ("seed", int),
        ("steps", int),
        ("evaluate_every", int),
        ("checkpoint_every", int),
        ("micro", int),
    ):
        value = getattr(made, key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value < (key != "seed")):
            raise UsageError(f"{key} is {value!r}; it takes a {'whole' if key == 'seed' else 'positive whole'} number")
    if made.autocast not in ("auto", "on", "off"):
        raise unknown("autocast", str(made.autocast), ("auto", "on", "off"))
    return made


def load(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} should hold `key: value` lines, it holds {type(values).__name__}")
    return values


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """values[a][b] = value for the dotted path `a.b`; a bare name on the way becomes {name: ...} or {part: ...}."""
    *parents, last = path.split(".")
    if not all((*parents, last)):
        raise UsageError(f"the path {path!r} has an empty piece")
    at, top = values, path.split(".")[0]
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


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """`--trust.low 0.1 --reward=f.py:score` as a nested dictionary; values are read as YAML."""
    values: dict[str, Any] = {}
    queue = list(arguments)
    while queue:
        flag = queue.pop(0)
        if not flag.startswith("--"):
            raise UsageError(f"unexpected argument {flag!r}; settings look like --trust.low 0.1")
        path, equals, text = flag[2:].partition("=")
        if not equals:
            if not queue or (queue[0].startswith("--") and len(queue[0]) > 2):
                raise UsageError(f"the flag {flag} needs a value")
            text = queue.pop(0)
        if path == "set":
            path, equals, text = text.partition("=")
            if not equals:
                raise UsageError(f"--set takes PATH=VALUE, not {path!r}")
        path = ALIASES.get(path, path)
        top = path.split(".")[0]
        if top.replace("-", "_") in KEYS:
            path = path.replace(top, top.replace("-", "_"), 1)
        elif top not in SLOTS:
            raise unknown("flag", top, (*KEYS, *SLOTS, *ALIASES))
        value = scalar(text)
        if path == "task.reward" and (given := values.get("task", {}).get("reward")) is not None:
            value = [*(given if isinstance(given, list) else [given]), value]
        assign(values, path, value)
    return values


def scalar(text: str) -> Any:
    """A command-line value: YAML, where `1e-3` is a number too."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win, dictionary by dictionary."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = merge(merged[key], value)
            elif isinstance(value, str) and isinstance(merged.get(key), dict) and key in (*NAMED, *SLOTS):
                assign(merged, key, value)
            else:
                merged[key] = value
    return merged
