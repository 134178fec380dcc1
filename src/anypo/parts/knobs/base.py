"""Knobs: numbers that move during a run, after a batch or an update."""

from __future__ import annotations

from copy import copy
from dataclasses import fields
from typing import Any, TypeVar, cast

from anypo.errors import UsageError, unknown
from anypo.parts.ops.names import kebab

KNOBS: dict[str, type] = {}
"""Knobs by the name they have in a configuration: `{knob: linear, start: 0.2, end: 0.1}`."""


_T = TypeVar("_T", bound=type)


def register_knob(cls: _T) -> _T:
    """Register a knob under its class name in kebab case; a class decorator."""
    name = kebab(cls.__name__)
    if name in KNOBS:
        raise UsageError(f"the knob name {name!r} is taken")
    KNOBS[name] = cls
    return cls


def read_metric(metrics: dict[str, float], name: str) -> float:
    """Return a metric of an update; the error for one that the method does not have names the nearest."""
    if name not in metrics:
        raise unknown("metric", name, metrics)
    return metrics[name]


class Moving:
    """What moves of a knob is what its configuration does not set: the fields that are not arguments."""

    def state_dict(self) -> dict[str, Any]:
        return {name: copy(getattr(self, name)) for name in self._moved()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._moved():
            setattr(self, name, copy(state[name]))

    def reach(self) -> tuple[float, ...]:
        """Return values it is known to take; they have to be in the range of its setting."""
        return ()

    def _moved(self) -> list[str]:
        return [f.name for f in fields(cast(Any, self)) if not f.init]
