"""Log-ratios between the policy and an anchor, and estimators of their divergence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.errors import MissingField
from anypo.parts.ops.masked import last_valid, ratio
from anypo.types import Trajectories


def sampled_kl(b: Trajectories) -> Tensor:
    """log pi_old - log pi_ref on valid decisions (k1, nats), 0 elsewhere."""
    if b.logp_old is None or b.logp_ref is None:
        raise MissingField("logp_old" if b.logp_old is None else "logp_ref")
    return torch.where(b.valid, b.logp_old - b.logp_ref, 0.0).detach()


def row_mean(b: Trajectories, x: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """Mean of x over each row's decisions; where a row stands as one sum, over the `length` it says it has."""
    length = b.get("length")
    return b.row_mean(x) if length is None else torch.where(b.valid, x, 0.0).sum(1) / length.clamp(min=1)


def last_value(b: Trajectories, value: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """What stands at each row's last valid decision; 0 for a row without any."""
    return torch.where(last_valid(b.valid), value, 0.0).sum(1)


def log_ratio(b: Trajectories, anchor: str = "old") -> Float[Tensor, "row step"]:
    """log pi - log pi_anchor on valid decisions, 0 elsewhere."""
    x = b.need("logp") - b.need(f"logp_{anchor}")
    return x if b.mask is None else torch.where(b.mask, x, 0.0)


def divergence(d: Tensor, kind: str) -> Tensor:
    """The estimators as functions of d = log anchor - log pi."""
    if kind == "forward":
        return d
    if kind == "proximal":
        r = ratio(-d)
        return -r * d - r + 1
    if kind == "k1":
        return -d
    return d.square() / 2 if kind == "k2" else ratio(d) - d - 1
