"""What a part may ask of the policy beside the sampled decisions: views (forward passes), draws (proposed actions), networks
and anchors (frozen copies with refresh rules). Undeclared fields are not computed. What a view can read off a pass are functionals,
which policies register."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

SIZES = {"action": 2, "choice": 3, "expert": 3, "input": 3, "member": 2}
"""Sizes of the dimensions of functionals in an example batch."""

PLAIN = "plain"
"""The name of a row's input without the hint it was sampled under."""


@dataclass(frozen=True)
class Functional:
    """What a policy or a store can give of every decision.

    shape: its dimensions beyond [row, step], as sizes or as names of `SIZES`. positive: it is a scale.
    """

    name: str
    shape: tuple[int | str, ...] = ()
    positive: bool = False

    def sizes(self) -> tuple[int, ...]:
        """Return its dimensions in an example batch."""
        return tuple(SIZES[d] if isinstance(d, str) else d for d in self.shape)


FUNCTIONALS: dict[str, Functional] = {}
"""By name; those of networks are their kinds' (`anypo.networks`), and value heads have none: they are one number each."""


def register_functionals(*functionals: Functional) -> frozenset[str]:
    """Register what a kind of policy gives; return the names. A name has one shape in all policies."""
    for functional in functionals:
        if FUNCTIONALS.setdefault(functional.name, functional) != functional:
            raise ValueError(f"{functional} is registered as {FUNCTIONALS[functional.name]}")
    return frozenset(functional.name for functional in functionals)


@dataclass(frozen=True)
class Draw:
    """Actions a policy proposes instead of those taken: by whom (`of`), for which observation, how, and how many each.

    how: `sample`; `mode`; `uniform` over the action box; `each` component of a mixture. count: actions per decision, as a
    further dimension, where it is not None. noise: deviation of Gaussian noise added to the action, cut at +-`clip`.
    live: the gradient runs through the action, and value networks are frozen; else the action is detached.
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
    """One forward pass that a part needs; equal views of a batch run once.

    functional: what is read off it, `logp`, `entropy`, a value head's name, ... of: whose parameters: `now`, or an anchor.
    ablate: share of the input that is hidden. layer: block of the network whose output is read as if it were the last.
    at: at the observation of the decision, or at the one that followed. draw: of proposed actions, not of those taken.
    input: another input of the row than the one it was sampled under, by its name (`plain`: without hint). temperature: of
    the next-token distribution, instead of that of sampling. optional: the field stays missing where the policy cannot give it.
    """

    functional: str = "logp"
    of: str = "now"
    ablate: float = 0.0
    layer: int | None = None
    at: Literal["here", "next"] = "here"
    draw: Draw | None = None
    input: str | None = None
    temperature: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class Network:
    """A network with parameters of its own, beside the policy's.

    of: its kind, which says what it reads and gives: Q(s, a) of `action`, or V(s) of `state`; `autoencoder`: a variational one of
    actions given states; or a kind registered by `register_network`. ensemble: how many, initialised apart and evaluated together.
    spread: each also has a standard deviation (`NAME_std`). norm: layer normalization before every activation. smooth: it can be
    differentiated twice, and gives its gradient in each input (`NAME_slope_INPUT`). lr: a learning rate of its own; 0: it stays as it
    began. grad_norm: its gradient is scaled down to this norm, apart from that of all others.
    """

    of: str = "action"
    ensemble: int = 1
    spread: bool = False
    norm: bool = False
    smooth: bool = False
    lr: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class Refresh:
    """When an anchor, a frozen copy of the policy, is renewed: before the update of every `every`-th batch, or of batch `at`
    alone (counted from 1); never otherwise. decay: what it keeps of itself then (an exponential moving average), at most `ramp` times
    the number of updates so far. late: after the batch's update instead. per: with `update`, the count is of parameter updates, and
    the renewal follows the update."""

    every: int | None = None
    at: int | None = None
    decay: float = 0.0
    ramp: float | None = None
    late: bool = False
    per: Literal["batch", "update"] = "batch"


ANCHORS = {"ref": Refresh(), "prev": Refresh(every=1), "ema": Refresh(every=1, decay=0.99)}
"""ref: the policy training started from. prev: the policy one batch ago. ema: its moving average.
A part that reads `logp_NAME` of an anchor costs one forward pass per batch; a part may declare `anchors` of its own."""


@cache
def rng_key(of: Draw | str) -> str:
    """Name in the trace of the random numbers of a draw, or of a functional that reads some."""
    return f"noise of {of}"


def policy_action(soft: bool) -> Draw:
    """Return the draw of the policy's own action, differentiable: a sample where `soft`, else the mode."""
    return Draw(live=True) if soft else Draw(how="mode", live=True)
