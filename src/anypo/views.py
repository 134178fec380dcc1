"""What a part may ask of the policy beside the sampled decisions: views (forward passes), draws (proposed actions), value networks
and anchors (frozen copies with refresh rules). Undeclared fields are not computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    normalization before every activation. lr: a learning rate of its own.
    """

    of: Literal["action", "state", "autoencoder"] = "action"
    ensemble: int = 1
    spread: bool = False
    norm: bool = False
    lr: float | None = None


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


def policy_action(soft: bool) -> Draw:
    """Return the draw of the policy's own action, differentiable: a sample where `soft`, else the mode."""
    return Draw(live=True) if soft else Draw(how="mode", live=True)
