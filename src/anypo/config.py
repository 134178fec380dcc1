"""A run is one YAML file, and every command-line flag is a dotted path into it: `--trust.low 0.1` is `trust: {low: 0.1}`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from anypo.errors import UsageError, unknown
from anypo.kernels import KINDS
from anypo.stages import CHAINS, SLOTS


@dataclass
class Config:
    """What a run is made of.

    method: id of a method. task, policy: {name: ..., further options}; the bare name is enough. stages: changes to the
    method's slots; at the top level of the file, under the slot's name.
    steps: length of the run in the task's unit (batches; environment steps for Gymnasium). None: the task recommends.
    target: stop once the held-out measure reaches it. evaluate_every, checkpoint_every: in batches; None: ten times a run.
    episodes: held-out episodes or prompts per evaluation (None: the task's own number).
    autocast: bfloat16 autocast of the network: auto (on hardware that is fast at it), on, off. micro: decisions per forward pass.
    compile: compiled updates and rollouts of control policies, after about a minute where there is a C++ compiler, and on GPUs for
        the next token of a language model: on, off.
    kernels: fast, or plain: each kernel is replaced by the PyTorch code it is tested against, slower and equal up to rounding.
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
    compile: str = "off"
    kernels: str = "fast"
    micro: int = 16384
    device: str = "auto"
    threads: int | None = None
    trackers: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.yaml: stages at the top level."""
        plain = asdict(self)
        stages = plain.pop("stages")
        return {**plain, **stages}


KEYS = tuple(f.name for f in fields(Config) if f.name != "stages")


NAMED = ("task", "policy")


COUNTS = ("steps", "evaluate_every", "checkpoint_every", "episodes", "micro", "threads")


def from_dict(values: dict[str, Any]) -> Config:
    """A Config from the content of a YAML file; unknown keys are errors that name the nearest valid one."""
    config: dict[str, Any] = {"stages": {}}
    for key, value in values.items():
        if key in SLOTS:
            config["stages"][key] = value
        elif key in NAMED:
            if not isinstance(value, (str, dict)):
                raise UsageError(f"{key} is {value!r}; it takes a name, or a dictionary with the key `name`")
            named = {"name": value} if isinstance(value, str) else dict(value)
            config[key] = {"name": "sums", **named} if key == "task" else named
        elif key == "trackers" and isinstance(value, str):
            config[key] = [name.strip() for name in value.split(",") if name.strip()]
        elif key in KEYS:
            config[key] = value
        else:
            raise unknown("key", str(key), (*KEYS, *SLOTS))
    result = Config(**config)
    for key in ("seed", *COUNTS):
        value = getattr(result, key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
            setattr(result, key, value)
        optional = value is None and key not in ("seed", "micro")
        if not optional and (type(value) is not int or value < (key != "seed")):
            raise UsageError(f"{key} is {value!r}; it takes a {'whole' if key == 'seed' else 'positive whole'} number")
    if not isinstance(result.method, str):
        raise UsageError(f"method is {result.method!r}; it takes the id of a method, see `anypo methods`")
    if result.target is not None and (isinstance(result.target, bool) or not isinstance(result.target, (int, float))):
        raise UsageError(f"target is {result.target!r}; it takes a number")
    result.out = None if result.out is None else str(result.out)
    for key, choices in (("autocast", ("auto", "on", "off")), ("compile", ("on", "off")), ("kernels", KINDS)):
        value = getattr(result, key)
        if isinstance(value, bool):  # YAML reads on and off as true and false
            value = "on" if value else "off"
            setattr(result, key, value)
        if value not in choices:
            raise unknown(key, str(value), choices)
    return result


def load_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    try:
        values = yaml.load(path.read_text(), Loader)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
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


TEXTS = ("task.system",)
"""Flags whose value is text as it stands, colons and numbers included."""


def parse_flags(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """`grpo --trust.low 0.1 --set task.heldout=0.2` as (["grpo"], nested dictionary); values are read as YAML.

    Every flag takes a value and is a dotted path of the YAML file. `--set PATH=VALUE` is the same in another spelling;
    `--reward R` is `--task.reward R`, and may be repeated or hold commas.
    """
    words: list[str] = []
    values: dict[str, Any] = {}
    rewards: list[str] = []
    queue = list(arguments)
    while queue:
        flag = queue.pop(0)
        if not flag.startswith("--"):
            words.append(flag)
            continue
        path, equals, text = flag[2:].partition("=")
        if not equals:
            if not queue or (queue[0].startswith("--") and len(queue[0]) > 2):
                raise UsageError(f"the flag {flag} needs a value")
            text = queue.pop(0)
        if path == "set":
            path, equals, text = text.partition("=")
            if not equals:
                raise UsageError(f"--set takes PATH=VALUE, such as --set trust.low=0.1, not {path!r}")
        if path == "reward":
            rewards += [r.strip() for r in text.split(",") if r.strip()]
            continue
        top, dot, rest = path.partition(".")
        top = top.replace("-", "_") if top.replace("-", "_") in KEYS else top
        if top not in (*KEYS, *SLOTS):
            raise unknown("flag", f"--{top}", [f"--{key}" for key in (*KEYS, *SLOTS, "reward", "set")])
        path = top + dot + rest
        assign(values, path, text if path in TEXTS else None if dot and text == "none" else scalar(text))
    if rewards:
        assign(values, "task.reward", rewards)
    return words, values


class Loader(yaml.SafeLoader):
    """YAML whose numbers include 3e-4, which YAML 1.1 takes for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def scalar(text: str) -> Any:
    """A command-line value, read as YAML."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key; a layer that names another part, task or policy drops the former one's settings."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = _over(key, merged[key], value) if key in merged else value
    return merged


def _over(key: str, old: Any, new: Any) -> Any:
    """`new` laid over `old` at a key of the file."""
    if key in CHAINS and isinstance(old, list) and isinstance(new, dict):
        return _relink(key, old, new)
    if key in (*NAMED, *SLOTS):
        label = "name" if key in NAMED else "part"
        chain = key in CHAINS or new == "none"
        old = {label: old} if isinstance(old, str) and isinstance(new, dict) else old
        new = {label: new} if isinstance(new, str) and isinstance(old, dict) and not chain else new
        if isinstance(new, dict) and isinstance(old, dict) and new.get(label, old.get(label)) != old.get(label):
            return new
    return merge(old, new) if isinstance(old, dict) and isinstance(new, dict) else new


def _relink(slot: str, links: list[Any], changes: dict[str, Any]) -> list[Any]:
    """A chain written as a list, with settings of some links changed by name or position."""
    changed = [{"part": link} if isinstance(link, str) else dict(link) for link in links]
    names = [str(link.get("part")) for link in changed]
    for key, settings in changes.items():
        if str(key) in names:
            at = names.index(str(key))
        elif str(key).isdigit() and int(key) < len(changed):
            at = int(key)
        elif len(changed) == 1 and not isinstance(settings, dict):
            at, settings = 0, {key: settings}
        else:
            raise unknown(f"link of the {slot} chain", str(key), names)
        changed[at] = merge(changed[at], settings) if isinstance(settings, dict) else {"part": settings}
    return changed
