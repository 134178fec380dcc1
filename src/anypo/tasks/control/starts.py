"""Seeds and reward scales of episodes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from anypo.policies.control.normalize import RunningNorm

GAMMA = 0.99
"""Discount of the return whose size scales the rewards; it need not be the method's."""


def reward_factor(seen: RunningNorm, reward: Float[Tensor, " decision"]) -> Float[Tensor, "1"]:
    """(1 - gamma) / rms(r) over the rewards seen so far, which these are added to."""
    seen.update(reward[:, None])
    return ((1 - GAMMA) / (seen.mean.square() + seen.var + 1e-8).sqrt()).float()


def start_seed(*key: int, held_out: bool = False) -> int:
    """A reset seed: even for training, odd for evaluation, so the two never meet."""
    return int(np.random.SeedSequence(key).generate_state(1)[0]) & ~1 | held_out
