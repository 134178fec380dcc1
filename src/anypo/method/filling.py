"""Fill the slots of a method from parts, names and settings."""

from __future__ import annotations

from typing import Any

from anypo.errors import UsageError
from anypo.parts.registry import build_stage
from anypo.stages import CHAINS


def fill_slot(slot: str, content: Any) -> Any:
    """What a slot holds: parts, given as such or by name; a chain is always a tuple."""
    if isinstance(content, str):
        return build_stage(slot, content)
    if slot not in CHAINS:
        if content is None and slot != "ratio":
            raise UsageError(f"the stage {slot!r} needs a part")
        return content
    chain = content if isinstance(content, (list, tuple)) else () if content is None else (content,)
    return tuple(p for item in chain for p in (build_stage(slot, item) if isinstance(item, str) else (item,)))
