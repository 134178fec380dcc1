"""Build the live objects of a run from its configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from anypo import kernels, policies, tasks
from anypo.config import Config
from anypo.errors import UsageError, unknown
from anypo.kernels.compiler import require_compiler
from anypo.kernels.malloc import keep_memory
from anypo.method.method import Method
from anypo.method.registry import method as find_method
from anypo.numbers import Knob
from anypo.parts.ops.names import kebab
from anypo.policies.weights import snapshot
from anypo.protocols import BatchSpec
from anypo.runs.run import Run
from anypo.stages import CHAINS, SLOTS, OpenStore
from anypo.tasks.pool import StartPool


def build(config: Config, folder: Path | None = None) -> Run:
    """Make the live objects of a run from its configuration; settings left open become the task's recommendation.

    The configuration is completed in place, so that the file written from it reproduces the run.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    kernels.use(config.kernels)
    keep_memory()
    method = find_method(config.method).configure(config.stages)
    task = tasks.make_task(config.task, seed=config.seed)
    recipe = task.recipe(method.traits)
    tasks.configure(task, recipe)
    step, collect = method.stages["step"], method.stages["collect"]
    method = method.configure({"step": open_settings(step, recipe), "collect": open_settings(collect, recipe)})
    kind = method.policy if hasattr(task, "action_space") else None
    config.policy.setdefault("name", kind or getattr(task, "default_policy", None))
    policy = policies.make_policy(config.policy, task, value=method.heads, networks=method.networks, seed=config.seed)
    policy.to(resolve_device(config.device))
    if config.compile == "on":
        if kernels.plain():
            raise UsageError("--kernels plain computes without compiled code; leave out --compile on")
        require_compiler()
        if not policy.independent and next(policy.parameters()).device.type == "cpu":
            raise UsageError("--compile on takes minutes for a language model and gains nothing on a CPU; leave it out")
        for part in (policy, task):
            if hasattr(part, "compile_rollouts"):
                part.compile_rollouts()
    config.steps = steps = config.steps or int(recipe["steps"])
    config.stages = {slot: spec_of(slot, method) for slot in SLOTS}
    if hasattr(task, "prepare"):  # text: every prompt has to fit the model
        task.prepare(policy)
    collect = method.stages["collect"]
    want = BatchSpec(collect.requests, collect.samples, recipe.get("horizon"))
    standing = task.standing and not method.traits["whole"]
    groups = param_groups(policy)
    if not groups:
        raise UsageError(f"the policy {config.policy['name']!r} has no trainable parameter")
    run = Run(
        config=config,
        method=method,
        task=task,
        policy=policy,
        pool=StartPool(task.starts, config.seed, standing),
        store=open_store(method, task, policy),
        stepper=method.stages["step"].bind(groups),
        want=want,
        generator=torch.Generator().manual_seed(config.seed),
        folder=folder,
        steps=steps,
    )
    run.anchors = {name: snapshot(policy) for name in run.rules}
    return run


def open_store(method: Method, task: Any, policy: Any) -> OpenStore:
    """The method's store, with the task's data in it where both know of transitions."""
    store = method.stages["store"].open()
    if getattr(method.stages["collect"], "offline", False) and not hasattr(task, "transitions"):
        raise UsageError(
            f"the method {method.card.id} learns from data, and the task {task.name} has none: --task minari:ID or data:FILE"
        )
    if method.traits["replays"] and hasattr(task, "transitions"):
        data = task.transitions()
        store.fill(data)  # pyright: ignore[reportAttributeAccessIssue]
        policy.standardize(data["obs"])
    return store


def param_groups(policy: Any) -> list[dict[str, Any]]:
    """What training changes, in groups: value networks (`critics`) apart from the policy itself."""
    groups: dict[str, list[Any]] = {"policy": [], "critics": []}
    for name, p in policy.named_parameters():
        if p.requires_grad:
            groups["critics" if name.startswith("critics.") else "policy"].append(p)
    return [{"params": params, "name": name} for name, params in groups.items() if params]


def open_settings(part: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """The part's settings that it leaves to the task."""
    names = [f.name for f in fields(part) if getattr(part, f.name) is None]
    return {name: recipe[name] for name in names if recipe.get(name) is not None}


def spec_of(slot: str, method: Method) -> Any:
    """A slot as configuration values that build it again."""

    def plain(value: Any) -> Any:
        if isinstance(value, Knob):
            initial = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # pyright: ignore[reportArgumentType]
            return {"knob": kebab(type(value).__name__), **initial}
        return list(value) if isinstance(value, tuple) else value

    specs = [
        {"part": kebab(type(p).__name__), **{f.name: plain(getattr(p, f.name)) for f in fields(p)}}
        for p in method.parts(slot)
    ]
    return specs if slot in CHAINS else (specs[0] if specs else None)


def resolve_device(name: str) -> torch.device:
    capable = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if capable else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda")) from None
    if device.type == "cuda" and not capable:
        raise UsageError("the device cuda was asked for, but torch sees no GPU here; use --device cpu")
    return device
