"""The nine stages and the small protocols their parts follow.

Beside `reads`, a part may declare: `views`, batch fields the engine fills by forward passes without gradient before the
update (per minibatch for a minibatch link); `live`, fields filled with gradient, where they differ from the plain
functional of that name; `anchors`, refresh rules; `heads`, the value functions a critic learns as outputs of the policy's
critic, `networks`, those with networks of their own; `policy`, the kind of policy for control it presumes. Whoever
declares nothing pays nothing.

A *part* is one stage's function with its configuration: a frozen dataclass with one `__call__`. Parts are pure functions of
tensors: they never see a model, an optimizer or a process group, so they cannot know whether they train a robot or a
language model. `reads` names the batch fields a part needs; the engine checks them and computes only what somebody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.types import Request, Trajectories

STAGES = ("collect", "score", "store", "critic", "credit", "ratio", "trust", "reduce", "step")
"""In the order they run. `terms` (further objectives beside the main one) is the tenth slot of a method, not a stage."""
SLOTS = (*STAGES, "terms")
CHAINS = frozenset({"score", "critic", "credit", "terms"})
"""Slots that hold a chain of parts; the others hold exactly one."""

Level = Literal["decision", "row", "group", "batch"]
"""What has to stay together for a part to be exact: single decisions, whole rows, whole groups, the whole batch."""
LEVELS: tuple[Level, ...] = ("decision", "row", "group", "batch")


@dataclass(frozen=True)
class Draw:
    """Actions a policy proposes instead of those taken: by whom (`of`), for which observation, how, and how many each.

    how: `sample`; `mode`; `uniform` over the action box; `each` component of a mixture. count: actions per decision, as a
    further dimension, where it is not None. noise: deviation of Gaussian noise added to the action, cut at +-`clip`.
    live: the gradient runs through the action, and value networks it is shown to stand still; else the action is given.
    Equal draws of a batch are made once, from the same random numbers.
    """

    of: str = "now"
    at: Literal["here", "next"] = "here"
    how: Literal["sample", "mode", "uniform", "each"] = "sample"
    count: int | None = None
    noise: float = 0.0
    clip: float = 0.0
    live: bool = False


@dataclass(frozen=True)
class View:
    """One forward pass somebody needs; equal views of a batch run once.

    functional: what is read off it, `logp`, `entropy`, a value head's name, ... of: whose parameters: `now`, or an anchor.
    ablate: share of the input that is hidden. layer: block of the network whose output is read as if it were the last.
    at: at the observation of the decision, or at the one that followed. draw: of proposed actions, not of those taken.
    optional: the field stays missing where the policy cannot give it.
    """

    functional: str = "logp"
    of: str = "now"
    ablate: float = 0.0
    layer: int | None = None
    at: Literal["here", "next"] = "here"
    draw: Draw | None = None
    optional: bool = False


@dataclass(frozen=True)
class Network:
    """A value function with networks of its own, beside the policy's.

    of: Q(s, a) of `action`, or V(s) of `state`; `autoencoder`: a variational one of actions given states. ensemble: how
    many, initialised apart and evaluated together. spread: each also has a standard deviation (`NAME_std`). norm: layer
    normalization before every activation.
    """

    of: Literal["action", "state", "autoencoder"] = "action"
    ensemble: int = 1
    spread: bool = False
    norm: bool = False


@dataclass(frozen=True)
class Refresh:
    """When an anchor, a frozen copy of the policy, is renewed: before the update of every `every`-th batch, or of batch `at`
    alone (counted from 1); never otherwise. decay: what it keeps of itself then (an exponential moving average).
    per: with `update`, the count is of parameter updates, and the renewal follows the update."""

    every: int | None = None
    at: int | None = None
    decay: float = 0.0
    per: Literal["batch", "update"] = "batch"


ANCHORS = {"ref": Refresh(), "prev": Refresh(every=1), "ema": Refresh(every=1, decay=0.99)}
"""ref: the policy training started from. prev: the policy one batch ago. ema: its moving average.
A part that reads `logp_NAME` of an anchor pays for one pass per batch; a part may declare `anchors` of its own."""


@dataclass(frozen=True)
class Want:
    """How much one batch should hold: `requests` starts with `samples` rows each, `horizon` decisions per row at most."""

    requests: int
    samples: int
    horizon: int | None = None


@runtime_checkable
class Pool(Protocol):
    """Start states in a reproducible order; the position survives checkpoints, and so do rows left unfinished.
    standing: its requests go on where the environments stand. decisions: how many were collected so far.
    batches: number of the present batch, from 1."""

    standing: bool
    unfinished: list[Trajectories]
    decisions: int
    batches: int

    def draw(self, requests: int, samples: int, horizon: int | None = None) -> list[Request]: ...


@runtime_checkable
class Collect(Protocol):
    """Yield requests, receive their finished, scored rows; return the batch. The driver numbers the groups."""

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories | None]: ...


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
    It sees the policy's own rows, or the demonstrations alone with `rows = "expert"`."""

    level: Level

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Float[Tensor, ""], dict[str, Tensor]]: ...


@runtime_checkable
class Step(Protocol):
    """How parameters move. `bind` ties the recipe to parameters; the bound object carries the optimizer's state."""

    def bind(self, groups: Iterable[dict[str, Any]]) -> Stepper: ...


@runtime_checkable
class Stepper(Protocol):
    """`update` computes gradients with the closures (one per piece of the minibatch), then moves the parameters, unless
    the gradient is not finite. progress: share of the run that is done, set by the loop. pieces: how many it wants.
    updates: how many were made.
    Inside `ahead`, the policy stands where the recipe wants its samples and gradients taken."""

    progress: float
    pieces: int
    updates: int

    def ahead(self) -> AbstractContextManager[Any]: ...
    def lr(self) -> float: ...
    def update(self, *closures: Callable[[], dict[str, Any]]) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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


@dataclass(frozen=True)
class Placeholder:
    """Stands for a knob while an update is recorded (`loops/record.py`): a tensor the knob's value is put in before every
    replay. To read it as a host float would write the value of that moment into the recording, so that fails."""

    value: Tensor

    def __float__(self) -> float:
        raise TypeError("a knob that is read as a float cannot be recorded")


Number = float | Knob | Placeholder
"""Any float of any part: a plain number or a knob. Parts read it with `float(...)`, or with `number`."""


def number(x: Number) -> float | Tensor:
    """The value of a plain number or a knob, for arithmetic with tensors."""
    return x.value if isinstance(x, Placeholder) else float(x)


@runtime_checkable
class Policy(Protocol):
    """Samples decisions (each kind in its own way) and evaluates given ones again.

    exact: log-probs kept from sampling equal a fresh evaluation at the same parameters up to rounding.
    independent: each decision can be evaluated alone, so a batch may be cut into single decisions.
    """

    exact: bool
    independent: bool

    @property
    def functionals(self) -> frozenset[str]:
        """What `evaluate` can give: `logp`, `entropy`, the names of its value heads, ..."""
        ...

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None
    ) -> dict[str, Float[Tensor, "row step"]]:
        """The functionals in `want` of the decisions in `b.trace`, at current parameters; read after block `layer`."""
        ...

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """b with each unit of its input (prompt token, feature) hidden independently with probability `share`."""
        ...

    def observe(self, b: Trajectories) -> None:
        """Learn input statistics from a batch, once, after the batch has been used."""
        ...


@runtime_checkable
class Task(Protocol):
    """Starts, a way to roll a policy out from them, and a held-out measure.

    name: as typed on the command line. metric: name of the held-out measure. channels: names of the reward channels.
    starts: number of training starts (None: unlimited). unit: what the length of a run counts ("batches",
    "environment steps"). standing: environments can go on where they stand, so rows need not be whole episodes.
    """

    name: str
    metric: str
    channels: tuple[str, ...]
    starts: int | None
    unit: str
    standing: bool

    def rollout(
        self, policy: Any, requests: list[Request], generator: torch.Generator
    ) -> tuple[Trajectories, dict[str, float]]:
        """Finished, scored rows, requests in order and their samples together, with `group` = index of the request;
        and metrics of the rollout. Requests whose start is None go on where the environments stand.
        A task with demonstrations has a method `demonstrate` beside it, which answers requests for them (`expert`)."""
        ...

    def evaluate(self, policy: Any, generator: torch.Generator, episodes: int | None = None) -> dict[str, float]:
        """Greedy performance on held-out starts; holds at least `metric`."""
        ...

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings that suit this task: lr, requests, samples, horizon, epochs, minibatches, steps, ..."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
