"""The knobs of a method: where they are, how they move, what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from anypo.errors import UsageError
from anypo.method.filling import Filling
from anypo.numbers import Knob
from anypo.parts.ops.settings import all_settings
from anypo.parts.registry import as_list
from anypo.stages import CHAINS, SLOTS
from anypo.types import Trajectories

if TYPE_CHECKING:
    from anypo.method.method import Method


def find_knobs(method: Method) -> list[tuple[str, Knob]]:
    """List every knob with its dotted path, `trust.low`; those of later phases as `phase1.trust.low`."""
    knobs = list(_knobs_of(method))
    first = {id(knob) for _, knob in knobs}
    for number, phase in enumerate(method.phases[1:], 1):
        knobs += [(f"phase{number}.{path}", knob) for path, knob in _knobs_of(phase) if id(knob) not in first]
    return knobs


def _knobs_of(filling: Filling) -> Iterator[tuple[str, Knob]]:
    for slot in SLOTS:
        for i, part in enumerate(as_list(slot, filling.stages[slot])):
            for path, value in all_settings(part):
                if isinstance(value, Knob):
                    yield f"{slot}.{i}.{path}" if slot in CHAINS else f"{slot}.{path}", value


def move_knobs(
    knobs: list[tuple[str, Knob]], every: str, metrics: dict[str, float], progress: float, b: Trajectories
) -> None:
    """Move those of the knobs that move now, each once, though it may serve several parts.

    Args:
        knobs: with their paths.
        every, metrics, progress, b: of `Method.update`.
    """
    for knob in {id(knob): knob for _, knob in knobs}.values():
        if knob.every == every:
            knob.update(metrics, progress, b)


def load_knobs(name: str, knobs: dict[str, Knob], state: dict[str, Any]) -> None:
    """Restore the knobs of a method.

    Args:
        name: the method's, for the error.
        knobs: by path.
        state: their saved states by path.

    Raises:
        UsageError: the paths differ.
    """
    if set(knobs) != set(state):
        raise UsageError(
            f"{name}: the saved state is of another method (knobs {sorted(state)} against {sorted(knobs)})"
        )
    for path, knob in knobs.items():
        knob.load_state_dict(state[path])
