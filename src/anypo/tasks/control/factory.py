"""Gymnasium environments given from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from anypo.tasks.control.gym import Gym


class MadeEnvironments(Gym):
    """Copies of an environment that a function makes; otherwise as `gym:ENV_ID`."""

    def __init__(self, make: Callable[[], Any], name: str, **options: Any):
        self.make = make
        super().__init__(name, **options)
        self.name = f"object:{name}"

    def _make(self) -> Any:
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
