"""The registry of methods."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anypo import plugins
from anypo.errors import UsageError, unknown

if TYPE_CHECKING:
    from anypo.method.method import Method

METHODS: dict[str, Method] = {}
ASKED: set[str] = set()
"""Entry points that were loaded, or are being: a plug-in may ask for methods while it is imported."""
PACKAGES: dict[str, str] = {}
"""The package that a method comes from, by id, where that is not anypo."""


def register_method(new: Method) -> Method:
    """Make a method known by the id on its card; returns it."""
    if new.card.id in METHODS:
        raise UsageError(f"the method id {new.card.id!r} is taken")
    METHODS[new.card.id] = new
    return new


def load_methods() -> dict[str, Method]:
    """Import every file below anypo/methods and the entry points `anypo.methods`, once; returns the registry.

    A package that cannot be imported is a warning, so that it does not take the other methods away.
    """
    package = importlib.import_module("anypo.methods")
    for module in pkgutil.walk_packages(package.__path__, "anypo.methods."):
        importlib.import_module(module.name)
    for name in plugins.installed("methods"):
        if name not in ASKED:
            ASKED.add(name)
            before = set(METHODS)
            try:
                loaded = as_method(name, plugins.load_installed("methods", name))
                if METHODS.get(loaded.card.id) is not loaded:
                    register_method(loaded)
            except UsageError as error:
                warnings.warn(str(error), stacklevel=2)
            PACKAGES.update(dict.fromkeys(METHODS.keys() - before, plugins.package(plugins.installed("methods")[name])))
    return METHODS


def as_method(name: str, loaded: Any) -> Method:
    """Return a method from elsewhere; one with the card of a registered method is a variant of it, with the id `name`.

    Raises:
        UsageError: it is no method.
    """
    from anypo.method.method import Method

    if not isinstance(loaded, Method):
        raise UsageError(f"{name} is a {type(loaded).__name__}; a method is made by anypo.method(BASE).but(...)")
    base = loaded.card.id
    if METHODS.get(base) in (None, loaded) or METHODS[base].card != loaded.card:
        return loaded
    card = replace(loaded.card, id=name, base=base, title=f"{base}, changed", claims=(), reduces=(), weight=None)
    return loaded.but(card=card)


def is_registered(name: str) -> bool:
    """Whether there is a method of that id."""
    return name in load_methods()


def methods() -> list[str]:
    """Return the registered ids."""
    return sorted(load_methods())


def method(name: str, **stages: Any) -> Method:
    """Return a fresh copy of a registered method, or of `FILE.py:NAME`, with any stages replaced:
    `method("grpo", ratio=MinPrefix())`."""
    known = load_methods()
    if name not in known and not plugins.names_file(name):
        raise unknown("method", name, known)
    if name in known:
        original = known[name]
    else:
        original = as_method(plugins.absolute_name(name), plugins.load_from_file(name, "method"))
    copied = copy.deepcopy(original)
    return copied.but(**stages) if stages else copied
