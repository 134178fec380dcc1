"""Assemble a run in memory from a method, a task and the settings of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anypo.config import Config
from anypo.method.method import Method
from anypo.runs import build
from anypo.runs.run import Run
from anypo.runs.settings import Settings, batch_spec, complete

Measures = dict[str, float]
Experiment = Callable[..., Measures]


def assemble_in_memory(
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
    """Build a run without a folder. What the method itself defines (its own epochs, a rate) stays; the rest is the experiment's.

    Args:
        method: what is trained with.
        task: a task that can make its own policy (`policy(heads, seed)`), unless one is given.
        seed: of starts, sampling and weights.
        batches: length of the run.
        lr, requests, samples, epochs, minibatch: of the step and collect stages where the method leaves them open.
        policy: the policy to train instead of the task's own.
    """
    recipe = {"lr": lr, "requests": requests, "samples": samples, "epochs": epochs, "minibatch": minibatch}
    method = complete(method, recipe)
    recipe = task.recipe(method.traits) | recipe
    config = Config(method=method.card.id, policy={"name": "table"}, seed=seed, evaluate_every=max(1, batches // 10))
    settings = Settings(config, method, batch_spec(method, recipe), batches, continuing=False, recipe=recipe)
    return build.assemble(settings, task, task.policy(method.heads, seed) if policy is None else policy)
