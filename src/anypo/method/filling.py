"""A filling: parts in the nine stages and, beside them, further terms."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.numbers import Switch
from anypo.parts.ops.settings import all_settings
from anypo.parts.registry import as_list, build_stage, describe, link_name
from anypo.stages import CHAINS, SLOTS, declared

LOSS = ("critic", "ratio", "trust", "reduce", "terms")
"""The slots that make up the loss."""


class Filling:
    """The parts of a method by slot, and what they declare.

    Raises:
        UsageError: a slot is unknown or empty, or the parts do not fit each other.
    """

    def __init__(self, name: str, stages: dict[str, Any]) -> None:
        check_slots(stages)
        self.stages: dict[str, Any] = {slot: fill_slot(slot, content) for slot, content in stages.items()}
        for slot in SLOTS:
            if slot not in self.stages:
                raise UsageError(f"the method {name!r} leaves the stage {slot!r} empty")
        trust, reduce = self.stages["trust"], self.stages["reduce"]
        if self.stages["ratio"] is None and declared(trust, "uses_ratio"):
            raise UsageError(f"{name}: the trust stage ({describe(trust)}) needs a ratio, and the ratio stage is empty")
        if declared(trust, "per_group") and not declared(reduce, "per_group"):
            raise UsageError(
                f"{name}: the trust stage ({describe(trust)}) gives one number per group, which the reduce stage"
                f" ({describe(reduce)}) cannot average; use `group-mean`"
            )

    def parts(self, *slots: str) -> list[Any]:
        """Return the parts in these slots, in order."""
        return [part for slot in slots for part in as_list(slot, self.stages[slot])]

    def setting_paths(self, *names: str) -> list[str]:
        """Return the dotted paths of all settings of these names, those of the store left out."""
        slots = [slot for slot in SLOTS if slot != "store"]
        places = [(slot, part) for slot in slots for part in self.parts(slot)]
        return [
            f"{slot}.{link_name(part)}.{path}" if slot in CHAINS else f"{slot}.{path}"
            for slot, part in places
            for path, _ in all_settings(part)
            if path.rpartition(".")[2] in names
        ]

    def reads(self, *slots: str) -> set[str]:
        """Batch fields that the parts in these slots need."""
        return {name for part in self.parts(*slots) for name in declared(part, "reads")}

    def batch_links(self) -> list[tuple[str, Any]]:
        """Return the links of score and credit that run once per batch, with their slots."""
        chain = [(slot, part) for slot in ("score", "credit") for part in self.parts(slot)]
        return [(slot, part) for slot, part in chain if declared(part, "when") == "batch"]

    def minibatch_links(self) -> list[Any]:
        """Return the links of credit that run inside every loss."""
        return [part for part in self.parts("credit") if declared(part, "when") == "minibatch"]

    def is_off(self, part: Any) -> bool:
        """Whether the part's coefficient is a switch at 0: the part is skipped, and so is all it alone would need."""
        switch = self._switches.get(id(part))
        return switch is not None and float(switch) == 0

    @property
    def switched(self) -> tuple[bool, ...]:
        """Which of the parts with a switch are on."""
        return tuple(float(switch) != 0 for switch in self._switches.values())

    @cached_property
    def _switches(self) -> dict[int, Switch]:
        """The switches of parts, by the part's id."""
        coefs = {id(part): declared(part, "coef") for part in self.parts(*LOSS)}
        return {part: coef for part, coef in coefs.items() if isinstance(coef, Switch)}


def merge_declared(parts: Iterable[Any], name: str) -> dict[str, Any]:
    """Return the declarations `name` of all parts in one dict."""
    return {key: value for part in parts for key, value in declared(part, name).items()}


def check_slots(names: Iterable[str]) -> None:
    """Refuse a name that is no slot."""
    for name in names:
        if name not in SLOTS:
            raise unknown("stage", name, SLOTS)


def fill_slot(slot: str, content: Any) -> Any:
    """Return the content of a slot: parts, given as such or by name; a chain is always a tuple."""
    if isinstance(content, str):
        return build_stage(slot, content)
    if slot not in CHAINS:
        if content is None and slot != "ratio":
            raise UsageError(f"the stage {slot!r} needs a part")
        return content
    chain = content if isinstance(content, (list, tuple)) else () if content is None else (content,)
    return tuple(p for item in chain for p in (build_stage(slot, item) if isinstance(item, str) else (item,)))
