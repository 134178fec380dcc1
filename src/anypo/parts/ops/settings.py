"""Settings of a part, those of its pieces (`pieces`, parts within the part) included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from anypo.stages import declared


def all_settings(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of every setting: `ensemble`, `next.noise`, `penalties.0.alpha`."""
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name not in declared(part, "pieces"):
            yield f.name, value
        elif isinstance(value, tuple):
            for i, piece in enumerate(value):
                yield from ((f"{f.name}.{i}.{path}", inner) for path, inner in all_settings(piece))
        elif value is not None:
            yield from ((f"{f.name}.{path}", inner) for path, inner in all_settings(value))


def with_pieces(part: Any) -> Iterator[Any]:
    """Yield a part and its pieces."""
    yield part
    for name in declared(part, "pieces"):
        value = getattr(part, name)
        for piece in value if isinstance(value, tuple) else () if value is None else (value,):
            yield from with_pieces(piece)


def change_settings(part: Any, change: Callable[[Any], Any]) -> Any:
    """Return the part with change(x) in the place of every setting x, those of its pieces included.

    Args:
        part: returned as it is where nothing changes.
        change: called with the value of each setting.
    """
    if part is None:
        return None
    if isinstance(part, tuple):
        pieces = tuple(change_settings(piece, change) for piece in part)
        return part if all(a is b for a, b in zip(pieces, part, strict=True)) else pieces
    changed: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        new = change_settings(value, change) if f.name in declared(part, "pieces") else change(value)
        if new is not value:
            changed[f.name] = new
    return replace(part, **changed) if changed else part
