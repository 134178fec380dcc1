"""A copy of a Gymnasium environment: one episode after another, each restorable by playing it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.policies.decisions import MASK


class EnvCopy:
    """One environment and its current episode: `over` once it ended, `done` where its last state is terminal."""

    def __init__(self, env: Any):
        from gymnasium.spaces import Discrete

        self.env = env
        self.maskable = isinstance(env.action_space, Discrete)
        self.over, self.done = True, False
        self.row = -1
        self.mask: Any = None

    def reset(self, seed: int, limit: int | None = None) -> None:
        """Begin the episode of `seed`, truncated after `limit` decisions."""
        observation, info = self.env.reset(seed=seed)
        self.seed, self.limit = seed, limit
        self.over = self.done = False
        self.actions: list[Any] = []
        self.total = 0.0
        self._observe(observation, info)

    def step(self, action: Any) -> float:
        """Step the environment and return the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        self.actions.append(action)
        self.total += reward
        self.done = bool(terminated)
        self.over = self.done or bool(truncated) or len(self.actions) == self.limit
        self._observe(observation, info)
        return reward

    def _observe(self, observation: Any, info: dict[str, Any]) -> None:
        self.observation = observation
        if not self.maskable:
            return
        mask = info.get(MASK)
        if isinstance(observation, dict):
            mask = observation.get(MASK, mask)
        if mask is not None:
            self.mask = np.array(mask, bool)
        elif self.mask is not None:  # an environment that once gave a mask and now gives none allows everything
            self.mask = np.ones_like(self.mask)

    def state_dict(self) -> dict[str, Any] | None:
        """None between episodes."""
        if self.over:
            return None
        actions = torch.from_numpy(np.array(self.actions))
        return {"seed": self.seed, "limit": self.limit, "actions": actions, "observation": self._fingerprint()}

    def replay(self, state: dict[str, Any] | None) -> bool:
        """Play the saved episode again; return whether it arrives at the saved observation."""
        self.over = True
        if state is None:
            return True
        self.reset(state["seed"], state["limit"])
        for action in state["actions"].numpy():
            self.step(action)
        return torch.equal(self._fingerprint(), state["observation"])

    def _fingerprint(self) -> Tensor:
        from gymnasium.spaces import flatten

        return torch.from_numpy(np.array(flatten(self.env.observation_space, self.observation)))
