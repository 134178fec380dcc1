"""A copy of a Gymnasium environment: one episode after another, each restorable by playing it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from anypo.errors import RunError, UsageError, unknown
from anypo.policies.control.spaces import choices
from anypo.tasks.control.first_calls import check_first_calls, short
from anypo.tasks.control.make_env import describe_error
from anypo.types import MASK


class EnvCopy:
    """One environment and its current episode: `over` once it ended, `done` where its last state is terminal.

    What the environment raises itself ends in a RunError that names it and the step, what breaks Gymnasium's protocol in a
    UsageError.
    """

    def __init__(self, env: Any, name: str, channels: Sequence[str] = ()):
        self.env, self.name, self.channels = env, name, channels
        self.channel_rewards: list[float] = []
        """Of the last step, the numbers of `info` under the keys `channels`."""
        check_first_calls(name, env)
        self.sizes = choices(env.action_space)
        asked = self.sizes and env.has_wrapper_attr("action_masks")
        self.action_masks = env.get_wrapper_attr("action_masks") if asked else None
        self.over, self.done = True, False
        self.row = -1
        self.mask: Any = None
        """Allowed choices, those of all components one after the other; None until the environment gives a mask."""

    @property
    def length(self) -> int:
        """Decisions of the episode so far."""
        return len(self.actions)

    @staticmethod
    def reset_all(copies: Sequence[Any], starts: Sequence[tuple[int, int | None]]) -> None:
        """Begin an episode in each copy, from its seed and with its limit."""
        for copy, start in zip(copies, starts, strict=True):
            copy.reset(*start)

    @staticmethod
    def step_all(copies: Sequence[Any], actions: Iterable[Any]) -> list[float]:
        """Step each copy with its action; returns the rewards."""
        return [copy.step(action) for copy, action in zip(copies, actions, strict=True)]

    def reset(self, seed: int, limit: int | None = None) -> None:
        """Begin the episode of `seed`, truncated after `limit` decisions."""
        try:
            observation, info = self.env.reset(seed=seed)
        except BaseException as error:
            self._fail(error, f"reset with the seed {seed}")
        self.seed, self.limit = seed, limit
        self.over = self.done = False
        self.actions: list[Any] = []
        self.total = 0.0
        self._observe(observation, info)

    def step(self, action: Any) -> float:
        """Step the environment and return the reward."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except BaseException as error:
            self._fail(error, f"step {len(self.actions)} of an episode")
        try:
            reward = float(reward)
        except (TypeError, ValueError, OverflowError):
            reward = self._number(reward)
        self.channel_rewards = [self._channel(info, name) for name in self.channels]
        self.actions.append(action)
        self.total += reward
        self.done = bool(terminated)
        self.over = self.done or bool(truncated) or len(self.actions) == self.limit
        self._observe(observation, info)
        return reward

    def _fail(self, error: BaseException, where: str) -> NoReturn:
        """Raise the error that ends the run; an interrupt and sentences of our own pass."""
        if isinstance(error, KeyboardInterrupt | UsageError):
            raise error
        raise RunError(f"{self.name}: {where} raised {describe_error(error)}") from error

    def _number(self, reward: Any) -> float:
        """Return the one number of a reward array."""
        try:
            return float(np.asarray(reward).item())
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"{self.name}: step returned {short(reward)} as reward, which must be one number"
            ) from None

    def _channel(self, info: dict[str, Any], name: str) -> float:
        """Return the reward of a channel."""
        if name not in info:
            numbers = [key for key, x in info.items() if isinstance(x, int | float | np.number)]
            raise unknown(f"reward channel in the `info` of {self.name}:", name, numbers)
        return self._number(info[name])

    def _observe(self, observation: Any, info: dict[str, Any]) -> None:
        self.observation = observation
        if not self.sizes:
            return
        mask = info.get(MASK)
        if self.action_masks is not None:
            mask = self.action_masks()
        if isinstance(observation, dict):
            mask = observation.get(MASK, mask)
        if mask is not None:
            self.mask = self._flat_mask(mask)
        elif self.mask is not None:  # a step without a mask allows everything
            self.mask = np.ones_like(self.mask)

    def _flat_mask(self, mask: Any) -> np.ndarray:
        """Return a mask as one vector: of an array, or of one array per component."""
        parts = mask if isinstance(mask, tuple | list) and len(self.sizes) > 1 else [mask]
        flat = np.concatenate([np.ravel(part) for part in parts]).astype(bool)
        if len(flat) != sum(self.sizes):
            raise UsageError(f"{self.name} gave an {MASK} of {len(flat)} entries for {sum(self.sizes)} choices")
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        if not self.over and not all(part.any() for part in parts):
            raise RunError(
                f"{self.name}: the {MASK} at step {len(self.actions)} of an episode forbids every action; allow at least one"
            )
        return flat

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


def stack_masks(copies: Sequence[Any]) -> Bool[Tensor, "copy choice"] | None:
    """Return the masks of several copies; one without allows everything, and None where all are without."""
    if all(copy.mask is None for copy in copies):
        return None
    everything = np.ones(sum(copies[0].sizes), bool)
    return torch.from_numpy(np.stack([everything if copy.mask is None else copy.mask for copy in copies]))
