"""A softmax over a table of logits: the smallest policy there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.policies.control import ActorCritic, Categoricals


class SoftmaxTable(ActorCritic):
    """pi(a | c) = softmax(logits[c])_a, with a table of values V(c) beside it.

    The logits are drawn from N(0, 0.01^2) with `seed`. Trace: obs [N, T] (index of the context), action [N, T].
    """

    def __init__(self, contexts: int, arms: int, *, value: bool = True, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(0.01 * torch.randn(contexts, arms, generator=generator))
        self.table = nn.Parameter(torch.zeros(contexts)) if value else None

    def encode(self, observation: Any) -> np.ndarray:
        """An index stays an index."""
        return np.array(observation, np.int64)

    def distribution(
        self, features: Int[Tensor, " decision"], mask: Bool[Tensor, "decision choice"] | None
    ) -> Categoricals:
        return Categoricals(self.logits[features], self.logits.shape[1:], mask)

    def values(self, features: Int[Tensor, " decision"]) -> Float[Tensor, " decision"] | None:
        return None if self.table is None else self.table[features]

    def env_action(self, action: Int[Tensor, " batch"]) -> Int[np.ndarray, " batch"]:
        """Arms as the environment numbers them."""
        return action.numpy()
