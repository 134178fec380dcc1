"""Seeds, reward scales and last values of episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from anypo.policies.control.normalize import RunningNorm

GAMMA = 0.99
"""Discount of the return whose size scales the rewards; it need not be the method's."""


def reward_factor(seen: RunningNorm, reward: Float[Tensor, " decision"]) -> Float[Tensor, "1"]:
    """(1 - gamma) / rms(r) over the rewards seen so far, which these are added to."""
    seen.update(reward[:, None])
    return ((1 - GAMMA) / (seen.mean.square() + seen.var + 1e-8).sqrt()).float()


def scales_reward(requested: bool | None, traits: dict[str, Any]) -> bool:
    """Whether rewards are scaled: as requested, else for all methods but those that replay transitions."""
    return not traits.get("replays") if requested is None else requested


def configured_scale(scale: RunningNorm | None, recipe: dict[str, Any]) -> RunningNorm | None:
    """Return the running scale of rewards where the recipe asks for one."""
    return (scale or RunningNorm(1)) if recipe["scale_reward"] else None


def start_seed(*key: int, held_out: bool = False) -> int:
    """Return a reset seed: even for training, odd for evaluation, so the two never meet."""
    return int(np.random.SeedSequence(key).generate_state(1)[0]) & ~1 | held_out


@torch.no_grad()
def further_bootstraps(
    policy: Any, last: Shaped[Tensor, "row ..."], done: Bool[Tensor, " row"]
) -> dict[str, Float[Tensor, " row"]]:
    """Return `bootstrap.NAME` of every value head but the first: V of the state after each row, 0 where the row is done.

    Args:
        policy: has the heads.
        last: observations after the rows.
        done: whether these are terminal.
    """
    heads = getattr(policy, "heads", ())
    if len(heads) < 2:
        return {}
    values = policy.values(policy.features(last))
    return {f"bootstrap.{name}": values[:, k].masked_fill(done, 0.0) for k, name in enumerate(heads) if k}
