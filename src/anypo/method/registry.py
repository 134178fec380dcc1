"""The registry of methods."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from anypo.errors import UsageError, unknown

if TYPE_CHECKING:
    from anypo.method.method import Method

METHODS: dict[str, Method] = {}


def register_method(new: Method) -> Method:
    """Make a method known by the id on its card; returns it."""
    if new.card.id in METHODS:
        raise UsageError(f"the method id {new.card.id!r} is taken")
    METHODS[new.card.id] = new
    return new


def load_methods() -> dict[str, Method]:
    """Import every file below anypo/methods, once; returns the registry."""
    package = importlib.import_module("anypo.methods")
    for module in pkgutil.walk_packages(package.__path__, "anypo.methods."):
        importlib.import_module(module.name)
    return METHODS


def is_registered(name: str) -> bool:
    """Whether there is a method of that id."""
    return name in load_methods()


def methods() -> list[str]:
    """Return the registered ids."""
    return sorted(load_methods())


def method(name: str, **stages: Any) -> Method:
    """Return a fresh copy of a registered method, with any stages replaced: `method("grpo", ratio=MinPrefix())`."""
    known = load_methods()
    if name not in known:
        raise unknown("method", name, known)
    copied = copy.deepcopy(known[name])
    return copied.but(**stages) if stages else copied
