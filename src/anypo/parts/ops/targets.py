"""Targets and regressions of value functions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.averages import token_mean
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


def regress(error: Float[Tensor, "row step member"], b: Trajectories, huber: float | None = None) -> Float[Tensor, ""]:
    """L = sum over the ensemble of mean e^2 / 2, or of its Huber form, linear beyond `huber`."""
    half = 0.5 * error.square()
    if huber is not None:
        half = torch.where(error.abs() <= huber, half, huber * (error.abs() - 0.5 * huber))
    return token_mean(half.sum(-1), b)


def member_subset(
    values: Float[Tensor, "... member"], subset: int | None, clock: Number
) -> Float[Tensor, "... chosen"]:
    """Choose members of an ensemble at random.

    Args:
        values: per member.
        subset: how many; None for all.
        clock: others are chosen at every tick.
    """
    if subset is None:
        return values
    order = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(int(float(clock))))
    return values[..., order[:subset].to(values.device)]
