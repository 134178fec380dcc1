"""What a task's options mean, read from the signatures and docstrings of what makes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from anypo.ranges import explain_parameters

QUALIFIER = re.compile(r"\b(\w+\.)+(?=\w)")
"""The module of a type, which a list of options leaves out."""


@dataclass(frozen=True)
class Option:
    """An option of a task: `--task.NAME`. kind: its type. about: the first sentence that the docstring has on it."""

    name: str
    kind: str
    default: Any
    about: str

    @property
    def value(self) -> str:
        """The default, as it is typed."""
        if self.default is None or isinstance(self.default, bool):
            return str(self.default).lower()
        return str(self.default)


def read_options(factories: list[Callable[..., Any]]) -> list[Option]:
    """Return the parameters with a default of classes or functions that make a task, each name once."""
    options: dict[str, Option] = {}
    for factory in factories:
        parameters = inspect.signature(factory).parameters.values()
        hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
        about = explain_parameters(inspect.getdoc(factory) or "", [p.name for p in parameters])
        for p in parameters:
            if p.default is not p.empty:
                kind = QUALIFIER.sub("", inspect.formatannotation(hints[p.name])) if p.name in hints else ""
                options.setdefault(p.name, Option(p.name, kind, p.default, about.get(p.name, "")))
    return list(options.values())
