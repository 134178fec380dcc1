"""The registry of methods and procedures: one namespace of ids, in which no system has the name of an entry."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anypo import plugins
from anypo.errors import UsageError, unknown
from anypo.method.procedure import Procedure

if TYPE_CHECKING:
    from anypo.method.method import Method

ENTRIES: dict[str, Method | Procedure] = {}
ASKED: set[tuple[str, str]] = set()
"""Entry points that were loaded, or are being."""
IMPORTING: set[str] = set()
"""Modules of entry points that are being imported: one may ask for methods, and its own are not there yet."""
PACKAGES: dict[str, str] = {}
"""The package that an entry comes from, by id, where that is not anypo."""
LIBRARY = ("anypo.methods", "anypo.estimators")
"""The packages whose files register entries."""


def register_method(new: Method) -> Method:
    """Make a method known by the id on its card; returns it."""
    _add(new, "method")
    return new


def register_procedure(new: Procedure) -> Procedure:
    """Make a procedure known by the id on its card; returns it."""
    _add(new, "procedure")
    return new


def _add(new: Method | Procedure, kind: str) -> None:
    """Add an entry to the registry.

    Raises:
        UsageError: its id or the name of its system is taken.
    """
    name, system = new.card.id, new.card.system
    if name in ENTRIES:
        raise UsageError(f"the {kind} id {name!r} is taken")
    if name in {entry.card.system for entry in ENTRIES.values()}:
        raise UsageError(f"the {kind} id {name!r} is the name of a system")
    if system is not None and system in {*ENTRIES, name}:
        raise UsageError(f"the system {system!r} of {name} has the id of an entry")
    ENTRIES[name] = new


def load_entries() -> dict[str, Method | Procedure]:
    """Import every file of the LIBRARY and the entry points `anypo.methods` and `anypo.procedures`, once; returns the registry.

    A package that cannot be imported is a warning, so that it does not take the other entries away.
    """
    for name in LIBRARY:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    for group in ("methods", "procedures"):
        for name, point in plugins.installed(group).items():
            if (group, name) not in ASKED and point.module not in IMPORTING:
                ASKED.add((group, name))
                IMPORTING.add(point.module)
                _load_installed(group, name)
                IMPORTING.remove(point.module)
    return ENTRIES


def _load_installed(group: str, name: str) -> None:
    """Register the method or procedure of an entry point; what is wrong with it is a warning."""
    before, kind = set(ENTRIES), group.removesuffix("s")
    try:
        loaded = as_entry(name, plugins.load_installed(group, name), kind)
        if ENTRIES.get(loaded.card.id) is not loaded:
            _add(loaded, kind)
    except UsageError as error:
        warnings.warn(str(error), stacklevel=2)
    PACKAGES.update(dict.fromkeys(ENTRIES.keys() - before, plugins.package(plugins.installed(group)[name])))


def as_entry(name: str, loaded: Any, kind: str) -> Method | Procedure:
    """Return a method or procedure from elsewhere; a method with the card of a registered one is a variant of it, with the id `name`.

    Args:
        name: as typed.
        loaded: the object.
        kind: what it should be, for the error: method or procedure.

    Raises:
        UsageError: it is neither.
    """
    from anypo.method.method import Method

    if isinstance(loaded, Procedure):
        return loaded
    if not isinstance(loaded, Method):
        form = "anypo.Procedure(card, call, known, kind)" if kind == "procedure" else "anypo.method(BASE).but(...)"
        raise UsageError(f"{name} is a {type(loaded).__name__}; a {kind} is made by {form}")
    base = loaded.card.id
    registered = ENTRIES.get(base)
    if registered in (None, loaded) or registered.card != loaded.card:
        return loaded
    card = replace(
        loaded.card, id=name, base=base, title=f"{base}, changed", system=None, claims=(), reduces=(), weight=None
    )
    return loaded.but(card=card)


def is_registered(name: str) -> bool:
    """Whether there is an entry of that id."""
    return name in load_entries()


def entries() -> list[str]:
    """Return the ids of all methods and procedures."""
    return sorted(load_entries())


def methods() -> list[str]:
    """Return the ids of the registered methods."""
    return [name for name in entries() if not isinstance(ENTRIES[name], Procedure)]


def procedures() -> list[str]:
    """Return the ids of the registered procedures."""
    return [name for name in entries() if isinstance(ENTRIES[name], Procedure)]


def system(name: str) -> list[str]:
    """Return the ids of the entries that make up a system, none where there is no such system."""
    return [entry for entry in entries() if ENTRIES[entry].card.system == name]


def entry(name: str) -> Method | Procedure:
    """Return a fresh copy of a registered method, or a procedure, or what `FILE.py:NAME` names."""
    return _find(name, "method or procedure", entries)


def method(name: str, **stages: Any) -> Method:
    """Return a fresh copy of a registered method, or of `FILE.py:NAME`, with any stages replaced:
    `method("grpo", ratio=MinPrefix())`."""
    copied = _find(name, "method", methods)
    if isinstance(copied, Procedure):
        raise UsageError(f"{name} is a procedure: anypo run {name}")
    return copied.but(**stages) if stages else copied


def procedure(name: str) -> Procedure:
    """Return a registered procedure, or that of `FILE.py:NAME`."""
    registered = _find(name, "procedure", procedures)
    if not isinstance(registered, Procedure):
        raise UsageError(f"{name} is a method: anypo train {name}")
    return registered


def _find(name: str, kind: str, known: Callable[[], list[str]]) -> Method | Procedure:
    """Return a copy of the entry of a name; where there is none, the error names the nearest of the known ones."""
    if name in load_entries():
        return copy.deepcopy(ENTRIES[name])
    if members := system(name):
        raise UsageError(f"{name} is a system of several entries: {', '.join(members)}")
    if not plugins.names_file(name):
        raise unknown(kind, name, known())
    return copy.deepcopy(as_entry(plugins.absolute_name(name), plugins.load_from_file(name, kind), kind))
