"""The nine stages and the small protocols their parts follow.

Beside `reads`, a part may declare: `views`, batch fields the engine fills by forward passes without gradient before the
update (per minibatch for a minibatch link); `live`, fields filled with gradient, where they differ from the plain
functional of that name; `anchors`, refresh rules; `heads`, the value functions a critic learns as outputs of the policy's
critic, `networks`, networks beside the policy; `policy`, the kind of policy for control it presumes, and `policy_options`, that
kind's options where a run leaves them open. Undeclared fields are not computed.

A *part* is one stage's function with its configuration: a frozen dataclass with one `__call__`. Parts are pure functions of
tensors: they have no access to a model, an optimizer or a process group, so that robots and language models are trained by
the same parts. `reads` names the batch fields a part needs; the engine checks them and computes only what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.protocols import BatchSpec, Pool
from anypo.types import Request, Trajectories

STAGES = ("collect", "score", "store", "critic", "credit", "ratio", "trust", "reduce", "step")
"""In the order they run. `terms` (further objectives beside the main one) is the tenth slot of a method, not a stage."""


SLOTS = (*STAGES, "terms")


CHAINS = frozenset({"score", "critic", "credit", "terms", "penalties"})
"""Slots, and settings of parts, that hold a chain of parts; the others hold exactly one."""


PIECES = {"next": "critic", "backup": "critic", "aggregate": "critic", "regress": "critic", "penalties": "critic"}
"""Kinds of pieces, parts that are settings of a part, with the stage of that part."""


Level = Literal["decision", "segment", "row", "group", "batch"]
"""What has to stay together for a part to be exact: single decisions, the decisions of one action, whole rows, whole groups, the
whole batch."""


LEVELS: tuple[Level, ...] = ("decision", "segment", "row", "group", "batch")


DECLARATIONS: dict[str, Any] = {
    "reads": (),
    "level": "batch",
    "views": {},
    "live": {},
    "anchors": {},
    "heads": None,
    "pieces": (),
    "networks": {},
    "policy": None,
    "policy_options": {},
    "when": "batch",
    "rows": "own",
    "coef": None,
    "uses_ratio": True,
    "per_group": False,
    "smooth": False,
    "bootstraps": False,
    "replays": False,
    "offline": False,
}
"""What a part may declare as an attribute of that name, and what holds where it does not. level: the safe one. heads: None is
("value",) for a critic and none for a ratio. rows: what a term or critic learns from, `own`, `all`, a source or several. smooth: a piece
differentiates its head's network twice. pieces: its settings that hold a piece, each called as its kind."""


def declared(part: Any, name: str) -> Any:
    """Return what the part declares under `name`, else the default."""
    return getattr(part, name, DECLARATIONS[name])


@runtime_checkable
class Collect(Protocol):
    """Yield requests, receive their finished, scored rows; return the batch. The driver numbers the groups."""

    def __call__(self, pool: Pool, want: BatchSpec) -> Generator[list[Request], Trajectories, Trajectories | None]: ...


@runtime_checkable
class Score(Protocol):
    """Shape the outcome: raw outcome fields -> score, scores or reward."""

    def __call__(self, b: Trajectories) -> Trajectories: ...


@runtime_checkable
class Store(Protocol):
    """rows -> rows the learner sees. State that outlives a batch lives in the object `open` returns."""

    def open(self) -> OpenStore: ...


@runtime_checkable
class OpenStore(Protocol):
    """add: take in the rows just collected. draws: how many batches the learner is to draw from it now."""

    def add(self, rows: Trajectories) -> None: ...
    def draws(self) -> int: ...
    def draw(self, generator: torch.Generator) -> Trajectories: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Credit(Protocol):
    """Pure: writes advantage, mask, weight, returns. A link with `when = "minibatch"` runs inside every loss instead,
    without gradient, on what the policy is by then."""

    def __call__(self, b: Trajectories) -> Trajectories: ...


@runtime_checkable
class Ratio(Protocol):
    """logp and an anchor -> the log-ratio x, [N, T] per decision or [N] per row."""

    level: Level

    def __call__(self, b: Trajectories) -> Tensor: ...


@runtime_checkable
class Trust(Protocol):
    """x, logp, advantage -> surrogate to maximise, per decision [N, T], row [N] or group [G], and its metrics."""

    level: Level

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class Reduce(Protocol):
    """surrogate -> scalar. It only averages; the mask enters the denominator, the weight does not."""

    level: Level

    def __call__(self, s: Tensor, b: Trajectories) -> Float[Tensor, ""]: ...


@runtime_checkable
class TermPart(Protocol):
    """A further objective beside the main one: a scalar to minimise, given the method's own reduction.
    It sees the policy's own rows, or those of the sources that `rows` names (`expert`: demonstrations)."""

    level: Level

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Float[Tensor, ""], dict[str, Tensor]]: ...


@runtime_checkable
class Step(Protocol):
    """How parameters move. `bind` ties the recipe to parameters; the bound object carries the optimizer's state."""

    def bind(self, groups: Iterable[dict[str, Any]]) -> Stepper: ...


@runtime_checkable
class Stepper(Protocol):
    """`update` computes gradients with the closures (one per part of the minibatch), then moves the parameters, unless
    the gradient is not finite. progress: share of the run that is done, set by the loop. splits: parts a minibatch is cut into.
    updates: updates made so far.
    `lookahead`: context in which the policy has the weights at which samples and gradients are taken."""

    progress: float
    splits: int
    updates: int

    def lookahead(self) -> AbstractContextManager[Any]: ...
    def lr(self) -> float: ...
    def update(self, *closures: Callable[[], dict[str, Any]]) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
