"""What a task's options mean, read from the signatures and docstrings of what makes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anypo.ranges import describe_range, explain_parameters, parameter_hints


@dataclass(frozen=True)
class Option:
    """An option of a task: `--task.NAME`. takes: its types and ranges. about: the first sentence that the docstring has on it."""

    name: str
    takes: str
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
        hints = parameter_hints(factory)
        about = explain_parameters(inspect.getdoc(factory) or "", [p.name for p in parameters])
        for p in parameters:
            if p.default is not p.empty:
                takes = describe_range(hints[p.name]) if p.name in hints else ""
                options.setdefault(p.name, Option(p.name, takes, p.default, about.get(p.name, "")))
    return list(options.values())
