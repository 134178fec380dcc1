"""Assemble a run from objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from anypo import tasks
from anypo.config import Config
from anypo.method.method import Method
from anypo.policies.weights import snapshot
from anypo.protocols import BatchSpec
from anypo.runs.build import open_store, param_groups
from anypo.runs.run import Run
from anypo.tasks.pool import StartPool

Measures = dict[str, float]


def assemble(
    method: Method,
    task: Any,
    seed: int,
    *,
    batches: int,
    lr: float,
    requests: int,
    samples: int,
    epochs: int,
    minibatch: int,
    policy: Any = None,
) -> Run:
    """A run in memory. What the method itself defines (its own epochs, a rate) stands; the rest is the experiment's."""
    recipe = {"lr": lr, "requests": requests, "samples": samples, "epochs": epochs, "minibatch": minibatch}
    for slot in ("step", "collect"):
        part = method.stages[slot]
        open_ = [f.name for f in fields(part) if getattr(part, f.name) is None and f.name in recipe]
        method = method.configure({slot: {name: recipe[name] for name in open_}})
    recommended = task.recipe(method.traits)
    tasks.configure(task, recommended)
    policy = task.policy(method.heads, seed) if policy is None else policy
    collect = method.stages["collect"]
    run = Run(
        config=Config(method=method.card.id, policy={"name": "table"}, seed=seed, evaluate_every=max(1, batches // 10)),
        method=method,
        task=task,
        policy=policy,
        pool=StartPool(task.starts, seed),
        store=open_store(method, task, policy),
        stepper=method.stages["step"].bind(param_groups(policy)),
        want=BatchSpec(collect.requests, collect.samples, recommended["horizon"]),
        generator=torch.Generator().manual_seed(seed),
        folder=None,
        steps=batches,
    )
    run.anchors = {name: snapshot(policy) for name in run.rules}
    return run


Experiment = Callable[..., Measures]
