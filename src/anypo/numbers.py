"""Numbers that may move during a run: a float or a knob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from anypo.types import Trajectories


@runtime_checkable
class Knob(Protocol):
    """A number that may move: constant, schedule, dual ascent, PID, history. Reads as a host float; moves only in `update`,
    which the loop calls after every batch, or after every parameter update (`every`), with the metrics and rows of that
    batch (or minibatch) and the progress of the run in [0, 1]."""

    every: ClassVar[Literal["batch", "update"]]

    def __float__(self) -> float: ...
    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Switch(Knob, Protocol):
    """A knob that, as the coefficient of a part, switches it off where it is 0."""

    switches: ClassVar[bool]


@dataclass(frozen=True)
class TracedScalar:
    """Stands for a knob while an update is recorded (`loops/compiled_update.py`): a tensor the knob's value is put in before every
    replay. To read it as a host float would write the value of that moment into the recording, so that fails."""

    value: Tensor

    def __float__(self) -> float:
        raise TypeError("a knob that is read as a float cannot be recorded")


Number = float | Knob | TracedScalar
"""Any float of any part: a plain number or a knob. Parts read it with `float(...)`, or with `number`."""


def number(x: Number) -> float | Tensor:
    """Return the value of a plain number or a knob, for arithmetic with tensors."""
    return x.value if isinstance(x, TracedScalar) else float(x)
