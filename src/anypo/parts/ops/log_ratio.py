"""Log-ratios between the policy and an anchor, and estimators of their divergence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts.ops.masked import last_valid
from anypo.types import Trajectories


def log_ratio(b: Trajectories, anchor: str = "old", of: str = "now") -> Float[Tensor, "row step"]:
    """x = log pi_of - log pi_anchor on valid decisions, 0 elsewhere; `now` is the policy itself."""
    x = b.need(logp_field(of)) - b.need(logp_field(anchor))
    return x if b.mask is None else torch.where(b.valid, x, 0.0)


def logp_field(of: str) -> str:
    """Return the field with the log-probabilities under the policy (`now`) or an anchor."""
    return "logp" if of == "now" else f"logp_{of}"


def sampled_kl(b: Trajectories) -> Float[Tensor, "row step"]:
    """log pi_old - log pi_ref on valid decisions (k1, nats), 0 elsewhere."""
    return log_ratio(b, "ref", of="old").detach()


def importance_ratio(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return r = exp(x), with x limited."""
    return limited(x).exp()


def limited(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Limit x where the square of exp(x) would overflow: to +-40 in float32, +-322 in float64.

    The slope beyond the limit is 1, not 0: a penalty that has become huge still pulls the right way.
    """
    limit = math.log(torch.finfo(x.dtype).max) / 2.2
    near = x.clamp(-limit, limit)
    return x + (near - x).detach() if x.requires_grad else near


def k3(d: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return k3 = exp(d) - d - 1 = expm1(d) - d, which rounding does not make negative where d is small."""
    return limited(d).expm1() - d


def divergence(d: Float[Tensor, "*any"], kind: str) -> Float[Tensor, "*any"]:
    """Return an estimator as a function of d = log anchor - log pi."""
    if kind == "forward":
        return d
    if kind == "proximal":
        return importance_ratio(-d) * k3(d)
    if kind == "k1":
        return -d
    return d.square() / 2 if kind == "k2" else k3(d)


def row_mean(b: Trajectories, x: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """Mean of x over each row's decisions; over its `length` where x has one sum for the row."""
    length = b.get("length")
    return b.row_mean(x) if length is None else torch.where(b.valid, x, 0.0).sum(1) / length.clamp(min=1)


def last_value(b: Trajectories, value: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
    """Return the value at each row's last valid decision; 0 for a row without any."""
    return torch.where(last_valid(b.valid), value, 0.0).sum(1)
