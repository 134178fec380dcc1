"""Tasks by the name typed on the command line; some, such as `jsonl:FILE` and `gym:ENV_ID`, take what follows the colon."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.protocols import Configures

TASKS = {
    "sums": "add two numbers (text, exact verifier, the default)",
    "jsonl:FILE": "your own prompts, one JSON object a line, with --reward",
    "pairs:FILE": "preference data: `prompt`, `chosen`, `rejected` a line, or `prompt`, `completion`, `label`",
    "reasoning-gym:NAME": "any data set of reasoning-gym, its own verifier",
    "gym:ENV_ID": "any Gymnasium environment with Box, Discrete or MultiDiscrete actions",
    "tensor:NAME": "many copies at once: CartPole-v1, Pendulum-v1, Acrobot-v1, MountainCarContinuous-v0, PointMass, GridWorld",
    "minari:ID": "a Minari data set, with the environment it comes from",
    "data:FILE": "transitions in an .npz or Parquet file, with --task.env ENV_ID",
    "bandit": "a contextual bandit whose best arms are known",
    "multimodal": "actions in the plane, several of which are equally good; with demonstrations",
}


def make_task(spec: dict[str, Any], seed: int) -> Any:
    """The task of `{name: ..., options}`; unknown names and options are errors that name the nearest."""
    options = dict(spec)
    kind, _, rest = str(options.pop("name")).partition(":")
    if kind == "sums":
        from anypo.tasks.text.sums import Sums

        return _call(Sums, "sums", options)
    if kind == "jsonl":
        from anypo.tasks.text import jsonl

        _needs(rest, "jsonl:FILE")
        reward = options.pop("reward", None)
        if reward is None:
            raise UsageError("a jsonl task needs a reward: --reward FILE.py:FUNCTION, or exact, numeric, math, regex")
        return _call(jsonl.make_jsonl_task, "jsonl", options, rest, reward if isinstance(reward, list) else [reward])
    if kind == "pairs":
        from anypo.tasks.text import pairs

        _needs(rest, "pairs:FILE")
        reward = options.pop("reward", [])
        return _call(pairs.make_pairs_task, "pairs", options, rest, reward if isinstance(reward, list) else [reward])
    if kind == "reasoning-gym":
        from anypo.tasks.text import reasoning

        _needs(rest, "reasoning-gym:NAME")
        return _call(reasoning.make_reasoning_task, "reasoning-gym", options, rest)
    if kind == "gym":
        from anypo.tasks.control.gym import Gym

        _needs(rest, "gym:ENV_ID")
        return _call(Gym, "gym", {"seed": seed, **options}, rest)
    if kind == "tensor":
        from anypo.tasks.control.tensor import Tensors

        _needs(rest, "tensor:NAME")
        return _call(Tensors, "tensor", {"seed": seed, **options}, rest)
    if kind in ("minari", "data"):
        from anypo.tasks.control import offline as data

        _needs(rest, "minari:ID" if kind == "minari" else "data:FILE.npz or data:FILE.parquet")
        from anypo.tasks.control.gym import Gym

        make = data.make_minari if kind == "minari" else data.make_file
        return _call(make, kind, {"seed": seed, **options}, rest, more=Gym)
    if kind == "bandit":
        from anypo.tasks.bandit import Bandit

        return _call(Bandit, "bandit", options)
    if kind == "multimodal":
        from anypo.tasks.plane import Multimodal

        return _call(Multimodal, "multimodal", options)
    raise unknown("task", str(spec["name"]), TASKS)


def configure(task: Any, recipe: dict[str, Any]) -> None:
    """Apply to a task the settings of its recipe that concern its environments, where there are any."""
    if isinstance(task, Configures):
        task.configure(recipe)


def _needs(rest: str, form: str) -> None:
    if not rest:
        raise UsageError(f"this task is written {form}")


def _call(make: Callable[..., Any], name: str, options: dict[str, Any], *arguments: Any, more: Any = None) -> Any:
    """make(*arguments, **options); what it hands on, `more` knows."""
    parameters = [p for f in (make, more) if f is not None for p in inspect.signature(f).parameters.values()]
    known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown(f"option of the task {name}:", option, known)
    return make(*arguments, **options)
