"""Gymnasium environments given from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from anypo.errors import OBJECT, missing_object
from anypo.tasks.control.gym import Gym
from anypo.types import Request, Trajectories


class MadeEnvironments(Gym):
    """Copies of an environment that a function makes; otherwise as `gym:ENV_ID`."""

    def __init__(self, make: Callable[[], Any], name: str, **options: Any):
        self.make = make
        super().__init__(name, **options)
        self.name = f"{OBJECT}{name}"

    def make_inner_env(self, **options: Any) -> Any:
        """Make a copy of the environment as the user's function does, whatever the options."""
        return self.make()


def factory_of(env: Any) -> tuple[Callable[[], Any], str]:
    """Return what makes further copies of an environment, and a name for it.

    Args:
        env: a Gymnasium environment, made anew by its spec or else copied; or a class or function that makes one.
    """
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        return env, getattr(env, "__name__", type(env).__name__)
    if env.spec is not None:
        return partial(gymnasium.make, env.spec, disable_env_checker=True), env.spec.id
    return partial(copy.deepcopy, env), type(env.unwrapped).__name__


class SpacesOnly:
    """The spaces of an environment that was given from Python: enough to act. What needs the environment asks for it."""

    metric = "return"
    channels = ("return",)
    unit = "environment steps"
    continuing = True
    starts = None
    default_policy = "mlp"

    def __init__(self, name: str, observation_space: Any, action_space: Any):
        self.name, self.observation_space, self.action_space = name, observation_space, action_space

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Ask for the environment."""
        raise missing_object(self.name, "task")

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Ask for the environment."""
        raise missing_object(self.name, "task")

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Recommend nothing: a run that was trained is complete."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave the state of the environments where it is."""
