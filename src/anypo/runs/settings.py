"""Resolve what a configuration leaves open: the method's own settings first, then the task's recommendation."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

from anypo.config import Config
from anypo.method.method import Method
from anypo.numbers import Knob
from anypo.parts.ops.names import kebab
from anypo.parts.registry import part_name
from anypo.protocols import BatchSpec, HasActionSpace, Task
from anypo.stages import CHAINS, SLOTS, declared


@dataclass(frozen=True)
class Settings:
    """What a run is built from, complete: writing `config` and building again gives the same run.

    config: with every setting filled in. method: as configured. spec: the size of a batch. steps: the run's length in the
    task's unit. continuing: requests continue the current episodes. recipe: the task's recommendation.
    """

    config: Config
    method: Method
    spec: BatchSpec
    steps: int
    continuing: bool
    recipe: dict[str, Any]


def resolve(config: Config, task: Task, method: Method) -> Settings:
    """Fill what configuration and method leave open with the task's recommendation; nothing that is given changes.

    Args:
        config: the configuration as it was written.
        task: asked for its recipe, which leaves it as it is.
        method: the configuration's method with its stages configured.
    """
    recipe = recommend(config, task, method)
    method = complete(method, recipe)
    config = replace(
        config,
        policy=deepcopy(config.policy),
        steps=config.steps or int(recipe["steps"]),
        stages={slot: spec_of(slot, method) for slot in SLOTS},
    )
    kind = method.policy if isinstance(task, HasActionSpace) else None
    config.policy.setdefault("name", kind or task.default_policy)
    if config.policy["name"] == kind:
        config.policy = {**method.policy_options, **config.policy}
    steps = config.steps or 0
    return Settings(
        config, method, batch_spec(method, recipe), steps, task.continuing and not method.traits["whole"], recipe
    )


def recommend(config: Config, task: Task, method: Method) -> dict[str, Any]:
    """Return the task's recommendation for a method; the trait `lora` says that an adapter is trained instead of all weights.

    Args:
        config: says so.
        task: asked for its recipe.
        method: with its traits.
    """
    return task.recipe({**method.traits, "lora": config.policy.get("lora") is not None})


def complete(method: Method, recipe: dict[str, Any]) -> Method:
    """Return the method with the recipe's values where its step and collect stages leave a setting open (None)."""
    return method.configure({slot: open_settings(method.stages[slot], recipe) for slot in ("step", "collect")})


def open_settings(part: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's values of the settings that a part leaves open."""
    names = [f.name for f in fields(part) if getattr(part, f.name) is None]
    return {name: recipe[name] for name in names if recipe.get(name) is not None}


def batch_spec(method: Method, recipe: dict[str, Any]) -> BatchSpec:
    """Return the size of a batch of a complete method."""
    collect = method.stages["collect"]
    return BatchSpec(collect.requests, collect.samples, recipe.get("horizon"))


def spec_of(slot: str, method: Method) -> Any:
    """Return a slot as configuration values that build it again."""

    specs = [part_spec(part) for part in method.parts(slot)]
    return specs if slot in CHAINS else (specs[0] if specs else None)


def part_spec(part: Any) -> dict[str, Any]:
    """Return a part as configuration values that build it again, its pieces included."""
    pieces = declared(part, "pieces")

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, Knob):
            initial = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # pyright: ignore[reportArgumentType]
            return {"knob": kebab(type(value).__name__), **initial}
        if isinstance(value, tuple):
            return [plain(name, member) for member in value]
        return part_spec(value) if name in pieces and value is not None else value

    return {"part": part_name(part), **{f.name: plain(f.name, getattr(part, f.name)) for f in fields(part)}}
