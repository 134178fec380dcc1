"""Targets of value functions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.types import Trajectories


def soft_min(b: Trajectories, alpha: float) -> Float[Tensor, "row step"]:
    """V = -alpha (logsumexp(-v1/alpha, -v2/alpha) - log 2): the smaller one as alpha -> 0, their mean as alpha -> inf.
    Without a second head, the value itself."""
    value = b.need("value")
    other = b.get("value_b")
    if other is None:
        return value
    return -alpha * (torch.logaddexp(-value / alpha, -other / alpha) - math.log(2))


POLYAK = 0.005
"""Share by which targets follow, unless a method says otherwise."""


def backup(b: Trajectories, after: Float[Tensor, "row step"], gamma: float) -> Float[Tensor, "row step"]:
    """y = r + gamma (1 - d) V(s'), detached; `after` is V(s')."""
    return (b.need("reward") + gamma * (1 - b.need("terminal")) * after).detach()
