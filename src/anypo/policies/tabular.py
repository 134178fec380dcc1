"""A softmax table over contexts and arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.networks import Sizes
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals
from anypo.policies.decisions import names_of
from anypo.types import Trajectories
from anypo.views import Network


class SoftmaxTable(ActorCritic):
    """pi(a | c) = softmax(logits[c])_a, and a table of values V(c).

    The logits are drawn from N(0, 0.01^2) with `seed`; the first value head starts at 0, further ones differ. Networks beside it are
    tables too: they read the context as a one-hot vector, and have no hidden layer.
    Trace: obs [N, T] (index of the context), action [N, T].
    """

    kind = "table"
    offers = ("obs", "action")

    def __init__(
        self,
        contexts: int,
        arms: int,
        *,
        value: bool | Sequence[str] = True,
        networks: Mapping[str, Network] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(0.01 * torch.randn(contexts, arms, generator=generator))
        self.heads = names_of(value)
        heads = 0.01 * torch.randn(contexts, len(self.heads), generator=generator)
        heads[:, :1] = 0
        self.table = nn.Parameter(heads) if self.heads else None
        self.carry(networks, Sizes(contexts, 1, arms), generator)

    def encode(self, observation: Any) -> np.ndarray:
        """Store the index of the context."""
        return np.array(observation, np.int64)

    def distribution(
        self, features: Int[Tensor, " decision"], mask: Bool[Tensor, "decision choice"] | None
    ) -> Categoricals:
        return Categoricals(self.logits[features], self.logits.shape[1:], mask)

    def values(self, features: Int[Tensor, " decision"]) -> Float[Tensor, "decision head"] | None:
        return None if self.table is None else self.table[features]

    def shown(self, features: Int[Tensor, " decision"]) -> Float[Tensor, "decision width"]:
        return self.hidden(features)

    def hidden(self, features: Int[Tensor, " decision"]) -> Float[Tensor, "decision width"]:
        return nn.functional.one_hot(features, len(self.logits)).to(self.logits.dtype)

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        return self.logits, True

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """Return b with every context replaced by a random one with probability `share`."""
        obs = b.trace["obs"]
        replacement = torch.randint(len(self.logits), obs.shape, generator=generator)
        unchanged = torch.rand(obs.shape, generator=generator) >= share
        return b.but(trace={**b.trace, "obs": torch.where(unchanged, obs, replacement)})

    def env_action(self, action: Int[Tensor, " batch"]) -> Int[np.ndarray, " batch"]:
        """Convert arms to the environment's numbers."""
        return action.numpy()
