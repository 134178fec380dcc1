"""Objects handed to a run from Python. Its config.yaml has `object:NAME` in their places, so they have to be handed over again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anypo import tasks
from anypo.config import Config
from anypo.errors import OBJECT, missing_object
from anypo.method.method import Method
from anypo.method.registry import method as find_method


@dataclass(frozen=True)
class Objects:
    """What is given instead of a name; None: the configuration names it.

    method: a Method. task: a Task. policy: called with the keywords of `policies.make_policy` (value, seed, networks).
    rewards: of the task that the configuration names.
    """

    method: Method | None = None
    task: Any = None
    policy: Callable[..., Any] | None = None
    rewards: tuple[Any, ...] = ()

    def find_method(self, config: Config) -> Method:
        """Return the run's method with its stages configured."""
        refuse_missing(config.method, self.method, "method")
        return (self.method or find_method(config.method)).configure(config.stages)

    def make_task(self, config: Config) -> Any:
        """Return the run's task."""
        name, rewards = config.task["name"], config.task.get("reward") or []
        refuse_missing(name, self.task, "task")
        for reward in [rewards] if isinstance(rewards, str) else rewards:
            refuse_missing(reward, self.task or self.rewards or None, "reward")
        if self.task is not None:
            return self.task
        spec = {**config.task, "reward": list(self.rewards)} if self.rewards else config.task
        return tasks.make_task(spec, seed=config.seed)


def refuse_missing(name: Any, given: Any, what: str) -> None:
    """Refuse a name that is an object's where the object is not given.

    Args:
        name: as in config.yaml.
        given: the object.
        what: method, task, policy or reward.

    Raises:
        UsageError: `object:NAME` without the object.
    """
    if given is None and isinstance(name, str) and name.startswith(OBJECT):
        raise missing_object(name, what)
