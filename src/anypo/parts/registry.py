"""The registry of parts: kebab-case name per stage, as typed on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, TypeVar

from anypo import plugins
from anypo.errors import UsageError, unknown
from anypo.numbers import Knob
from anypo.parts.knobs.base import KNOBS
from anypo.parts.ops.names import kebab
from anypo.ranges import check, field_hints
from anypo.stages import CHAINS, PIECES, SLOTS, declared

PARTS: dict[str, dict[str, type]] = {kind: {} for kind in (*SLOTS, *PIECES)}


_T = TypeVar("_T", bound=type)


RENAMED = {
    ("reduce", "each"): "group-mean",
    ("reduce", "share"): "scaled-mean",
    ("reduce", "per-width"): "step-width-mean",
    ("trust", "clone"): "weighted-bc",
    ("trust", "follow"): "no-policy-loss",
    ("terms", "imitate"): "term",
}
"""Former names of parts, which still work and say what they are called now."""


class Rewrite(Protocol):
    """How configurations of former parts of a stage are written now."""

    def links(self, specs: list[Any]) -> list[Any]:
        """Return the chain of links, those of former parts rewritten."""
        ...

    def changes(self, settings: dict[Any, Any], chain: Sequence[Any]) -> dict[Any, Any]:
        """Return changes to links of a chain by name, those of former links rewritten."""
        ...


REWRITES: dict[str, Rewrite] = {}
"""By stage."""


def register_part(stage: str) -> Callable[[_T], _T]:
    """Register a part with its stage, or a piece with its kind, under its class name in kebab case (MinPrefix -> min-prefix); a
    class decorator.

    Raises:
        UsageError: the stage has a part of that name.
    """

    if stage not in PARTS:
        raise unknown("stage", stage, PARTS)

    def add(cls: _T) -> _T:
        name = kebab(cls.__name__)
        if name in PARTS[stage]:
            raise UsageError(f"the {stage} stage has a part {name!r} already; choose another class name")
        PARTS[stage][name] = cls
        return cls

    return add


def load_parts() -> dict[str, dict[str, type]]:
    """Import the entry points `anypo.parts`, named STAGE.PART; returns the registry."""
    for name in plugins.installed("parts"):
        stage, _, part = name.partition(".")
        find(stage, part)
    return PARTS


def as_part(name: str, cls: Any) -> type:
    """Return a part class from elsewhere.

    Raises:
        UsageError: it is no dataclass.
    """
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UsageError(f"{name} is no part: a part is a dataclass whose objects are called with a batch")
    return cls


def part_name(part: Any) -> str:
    """Return the name that `find` takes for a part's class: FILE.py:CLASS for one from a file."""
    cls = type(part)
    source = plugins.origin(cls)
    return f"{source}:{cls.__name__}" if source is not None and source.endswith(".py") else kebab(cls.__name__)


def link_name(part: Any) -> str:
    """Return the name by which a link of a chain is changed: the one it declares as `label`, else the part's."""
    return getattr(part, "label", None) or part_name(part)


def find(stage: str, name: str) -> type:
    """Return the part class of that name, `FILE.py:CLASS` included; the error for an unknown one names the nearest."""
    if plugins.names_file(name):
        return as_part(name, plugins.load_from_file(name, f"{stage} part"))
    if name not in PARTS[stage] and f"{stage}.{name}" in plugins.installed("parts"):
        cls = as_part(name, plugins.load_installed("parts", f"{stage}.{name}"))
        PARTS[stage].setdefault(name, cls)
    name = renamed(stage, name)
    if name not in PARTS[stage]:
        raise unknown(f"{stage} part", name, PARTS[stage])
    return PARTS[stage][name]


def renamed(stage: str, name: str) -> str:
    """Return the present name of a part, with a warning where it had another."""
    if (stage, name) not in RENAMED:
        return name
    warnings.warn(f"the {stage} part {name!r} is called {RENAMED[stage, name]!r} now", stacklevel=3)
    return RENAMED[stage, name]


def describe(part: Any) -> str:
    """Return a part as short text, `clip(low=0.2, high=0.28)`: its settings, None and defaults of False left out."""
    settings = []
    for f in fields(part):
        value = getattr(part, f.name)
        default = None if f.default is MISSING else f.default
        if value is None or value is False or (isinstance(value, tuple) and value == default):
            continue
        if f.name in declared(part, "pieces"):
            value = " + ".join(map(describe, value)) if isinstance(value, tuple) else describe(value)
        settings.append(f"{f.name}={value if not isinstance(value, float) else format(value, 'g')}")
    return f"{kebab(type(part).__name__)}({', '.join(settings)})" if settings else kebab(type(part).__name__)


def as_list(stage: str, value: Any) -> list[Any]:
    """Return a slot's content as a list, whether the slot holds one part or a chain."""
    if stage in CHAINS:
        return list(value)
    return [] if value is None else [value]


def build_stage(stage: str, spec: Any, current: Any = None) -> Any:
    """Build a slot's content from its configuration.

    One part: `"clip"`, `{"part": "clip", "low": 0.1}`, or `{"low": 0.1}` to change the current one. A chain:
    `"combine,baseline"`, a list of parts, or `{"baseline": {"scale": None}}` to change links by name or position, of the chain that
    `part` names or else of the current one.

    Args:
        stage: the slot.
        spec: names, settings, or both.
        current: what the method has there.
    """
    if spec is None or spec == "none":
        return () if stage in CHAINS else None
    if stage not in CHAINS:
        return build_part(stage, spec, current)
    if isinstance(spec, str):
        spec = [name.strip() for name in spec.split(",") if name.strip()]
    rewrite = REWRITES.get(stage)
    if isinstance(spec, list):
        spec = rewrite.links(spec) if rewrite else spec
        return tuple(build_part(stage, s, known=current or ()) for s in spec)
    if not isinstance(spec, dict):
        raise UsageError(f"{stage}: expected part names or settings, got {spec!r}")
    if "part" in spec:  # the chain is named, and settings of its links follow
        spec = dict(spec)
        current = build_stage(stage, spec.pop("part"))
    chain = list(current or ())
    for key, settings in (rewrite.changes(spec, chain) if rewrite else spec).items():
        names = [link_name(part) for part in chain]
        kinds = [kebab(type(part).__name__) for part in chain]
        key = renamed(stage, str(key))
        if key.isdigit() and int(key) < len(chain):
            at = int(key)
        elif key in names or key in kinds:
            at = names.index(key) if key in names else kinds.index(key)
        elif len(chain) == 1 and (not isinstance(settings, dict) or key in declared(chain[0], "pieces")):
            at, settings = 0, {key: settings}
        else:
            raise unknown(f"link of the {stage} chain", key, names)
        chain[at] = build_part(stage, settings, chain[at])
    return tuple(chain)


def build_part(stage: str, spec: Any, current: Any = None, known: Sequence[Any] = ()) -> Any:
    """Build one part.

    Args:
        stage: where it is registered.
        spec: its name, or settings with the name under `part`.
        current: keeps the settings that are not given.
        known: parts whose classes may be named although they are not registered.
    """
    if isinstance(spec, str):
        spec = {"part": spec}
    if not isinstance(spec, dict):
        raise UsageError(f"{stage}: expected the name of a part or its settings, got {spec!r}")
    cls = type(current)
    if "part" in spec:
        present = {part_name(part): type(part) for part in (*known, current) if part is not None}
        cls = present.get(str(spec["part"])) or find(stage, str(spec["part"]))
    if cls is type(None):
        raise UsageError(f"{stage}: there is no part whose settings could change; name one with `part`")
    settable = {f.name: f for f in fields(cls)}
    settings = {k: v for k, v in spec.items() if k != "part"}
    keep = {name: getattr(current, name) for name in settable} if type(current) is cls else {}
    for name, value in settings.items():
        if name not in settable:
            raise unknown(f"setting of the {stage} part {kebab(cls.__name__)!r}:", str(name), settable)
        path = f"{stage}.{kebab(cls.__name__)}.{name}" if stage in CHAINS else f"{stage}.{name}"
        if name in declared(cls, "pieces"):
            settings[name] = build_stage(name, value, keep.get(name, settable[name].default))
        else:
            settings[name] = check(path, field_hints(cls)[name], _value(path, value))
    return cls(**{**keep, **settings})


def _value(path: str, value: Any) -> Any:
    """Return a setting as the part takes it: lists become tuples, `{knob: ...}` a knob."""
    if isinstance(value, dict) and "knob" in value:
        return build_knob(path, value)
    return tuple(value) if isinstance(value, list) else value


def build_knob(path: str, spec: dict[str, Any]) -> Knob:
    """Build the knob of `{knob: NAME, settings}`.

    Args:
        path: of its setting.
        spec: its name and settings.

    Raises:
        UsageError: name or settings are unknown, out of range or missing.
    """
    name = str(spec["knob"])
    if name not in KNOBS:
        raise unknown("knob", name, KNOBS)
    cls, settings = KNOBS[name], {k: v for k, v in spec.items() if k != "knob"}
    known = {f.name: f for f in fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of the knob {name!r}:", str(key), known)
        settings[key] = check(f"{path}.{key}", field_hints(cls)[key], value)
    missing = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in missing if key not in settings]:
        raise UsageError(f"{path}: the knob {name!r} needs {' and '.join(missing)}")
    return cls(**settings)
