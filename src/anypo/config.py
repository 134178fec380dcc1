"""A run is one YAML file: what it is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from anypo.errors import UsageError, unknown
from anypo.kernels import KINDS
from anypo.ranges import Count, Finite, Range, Seed, Size, check, field_hints
from anypo.stages import CHAINS, PIECES, SLOTS


@dataclass
class Config:
    """What a run is made of.

    method: id of a method. methods: of the tasks of a mixture that have one of their own, by name or number: an id, or
        {method: ID, weight: W}. task, policy: {name: ..., further options}; the bare name is enough. stages: changes to the
    method's slots; at the top level of the file, under the slot's name.
    steps: length of the run in the task's unit (batches; environment steps for Gymnasium). None: the task recommends.
    metric: the held-out measure that heads the run; None: the task's own. target: stop once it is reached.
    evaluate_every, checkpoint_every: in batches; None: ten times a run.
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
    steps: Count[int] | None = None
    seed: Seed = 0
    out: str | None = None
    metric: str | None = None
    target: Finite[float] | None = None
    evaluate_every: Count[int] | None = None
    checkpoint_every: Count[int] | None = None
    episodes: Size[int] | None = None
    autocast: str = "auto"
    compile: str = "off"
    kernels: str = "fast"
    micro: Count[int] = 16384
    device: str = "auto"
    threads: Annotated[int, Range(least=1, most=512)] | None = None
    trackers: list[str] = field(default_factory=list)
    methods: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.yaml: stages at the top level."""
        plain = asdict(self)
        stages = plain.pop("stages")
        return {**plain, **stages}


KEYS = tuple(f.name for f in fields(Config) if f.name != "stages")


NAMED = ("task", "policy")


METHOD_ALIASES = ("batch_size", "beta")
"""Keys that name a setting of the method, see `method_path`."""


def from_dict(values: dict[str, Any]) -> Config:
    """Return a Config from the content of a YAML file; unknown keys are errors that name the nearest valid one."""
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
        elif key not in METHOD_ALIASES:
            raise unknown("key", str(key), (*KEYS, *SLOTS))
    if config.get("out") is not None:
        config["out"] = str(config["out"])
    for key, choices in (("autocast", ("auto", "on", "off")), ("compile", ("on", "off")), ("kernels", KINDS)):
        if key in config and config[key] not in choices:
            raise unknown(key, str(config[key]), choices)
    for key in config.keys() & set(KEYS):
        config[key] = check(key, field_hints(Config)[key], config[key])
    if "name" not in config.get("task", {"name": ""}):
        raise UsageError("the task has no name")
    for alias in METHOD_ALIASES:
        if alias in values:
            apply_alias(config, alias, values[alias])
    return Config(**config)


def apply_alias(config: dict[str, Any], alias: str, value: Any) -> None:
    """Set the method's setting that an alias names.

    Args:
        config: keywords of a Config; changed.
        alias: one of METHOD_ALIASES.
        value: as configured.
    """
    slot, *rest = method_path(config.get("method", "grpo"), config["stages"], alias).split(".")
    inner: Any = value
    for key in reversed(rest):
        inner = {key: inner}
    config["stages"] = merge(config["stages"], {slot: inner})


def method_path(name: str, stages: dict[str, Any], alias: str) -> str:
    """Return the path of the method's setting that an alias names.

    `batch_size` is the transitions of a minibatch where the method replays, else the rows of one; `beta` is the setting that the
    method's card names, or the only one of that name.

    Args:
        name: of the method.
        stages: changes to it.
        alias: one of METHOD_ALIASES.

    Raises:
        UsageError: no setting, or more than one, is called beta; it lists the candidates.
    """
    from anypo.method.registry import method  # imports every method

    chosen = method(name).configure(stages)
    if alias == "batch_size":
        return "store.batch" if chosen.traits["replays"] else "step.minibatch"
    if (path := chosen.beta_path()) is not None:
        return path
    others = [
        path for path in chosen.setting_paths("coef", "alpha") if path.split(".")[0] in ("score", "trust", "terms")
    ]
    candidates = chosen.setting_paths("beta") or others
    if not candidates:
        raise UsageError(f"{name} has no setting that --beta could stand for")
    raise UsageError(f"--beta stands for no one setting of {name}; name the one you mean: --{', --'.join(candidates)}")


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key; a layer that names another part, task or policy drops the former one's settings."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = _over(key, merged[key], value) if key in merged else value
    return merged


def _over(key: str, old: Any, new: Any) -> Any:
    """Lay `new` over `old` at a key of the file."""
    if key in CHAINS and isinstance(old, list) and isinstance(new, dict):
        return _relink(key, old, new)
    if key in (*NAMED, *SLOTS, *PIECES):
        label = "name" if key in NAMED else "part"
        chain = key in CHAINS or new == "none"
        old = {label: old} if isinstance(old, str) and isinstance(new, dict) else old
        new = {label: new} if isinstance(new, str) and isinstance(old, dict) and not chain else new
        if isinstance(new, dict) and isinstance(old, dict) and new.get(label, old.get(label)) != old.get(label):
            return new
    return merge(old, new) if isinstance(old, dict) and isinstance(new, dict) else new


def _relink(slot: str, links: list[Any], changes: dict[str, Any]) -> list[Any]:
    """Return a chain written as a list, with settings of some links changed by name or position."""
    from anypo.parts.registry import load_parts  # imports every part

    changed = [{"part": link} if isinstance(link, str) else dict(link) for link in links]
    names = [str(link.get("part")) for link in changed]
    heads = [
        link.get("head", getattr(load_parts()[slot].get(name), "head", None))
        for link, name in zip(changed, names, strict=True)
    ]
    for key, settings in changes.items():
        if str(key) in heads or str(key) in names:
            at = heads.index(str(key)) if str(key) in heads else names.index(str(key))
        elif str(key).isdigit() and int(key) < len(changed):
            at = int(key)
        elif len(changed) == 1 and not isinstance(settings, dict):
            at, settings = 0, {key: settings}
        else:
            raise unknown(f"link of the {slot} chain", str(key), names)
        changed[at] = merge(changed[at], settings) if isinstance(settings, dict) else {"part": settings}
    return changed
