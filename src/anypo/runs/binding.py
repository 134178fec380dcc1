"""What the stages of a run are bound to: the step to parameters, the store to the task's data."""

from __future__ import annotations

import math
from typing import Any

from anypo.errors import UsageError
from anypo.method.method import Method
from anypo.protocols import HasTransitions, StoresObservations
from anypo.stages import OpenStore


def open_store(method: Method, task: Any, policy: Any) -> OpenStore:
    """Open the method's store, filled with the task's data where the method learns from transitions.

    Args:
        method: whose store.
        task: may have recorded transitions.
        policy: standardizes its observations by them.

    Raises:
        UsageError: the method learns from data and the task has none, or the policy reads no observations that can be stored.
    """
    if method.traits["replays"] and not isinstance(getattr(policy, "encode", None), StoresObservations):
        raise UsageError(
            f"the store of {method.card.id} keeps transitions of observations, and the policy of the task {task.name} reads none;"
            " it is for tasks such as gym:ENV_ID"
        )
    store = method.stages["store"].open()
    if method.traits["offline"] and not isinstance(task, HasTransitions):
        raise UsageError(
            f"the method {method.card.id} learns from data, and the task {task.name} has none: --task minari:ID or data:FILE"
        )
    if method.traits["replays"] and isinstance(task, HasTransitions):
        data = task.transitions()
        store.fill(data, policy.encode.expand)  # pyright: ignore[reportAttributeAccessIssue]
        policy.standardize(data["obs"])
    return store


def param_groups(policy: Any, moves: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups: networks beside the policy (`critics`) apart from the policy itself, and those with a
    learning rate or a bound on their gradient of their own apart from the others. A rate of 0 keeps a network out of the common norm.

    Args:
        policy: whose parameters.
        moves: how the names of those begin that are wanted; None: all.

    Raises:
        UsageError: no name begins so.
    """
    groups: dict[str, dict[str, Any]] = {name: {"params": [], "name": name} for name in ("policy", "critics")}
    for name, net in getattr(policy, "networks", {}).items():
        settings = {"own_lr": net.lr, "own_norm": math.inf if net.lr == 0 else net.grad_norm}
        if settings := {key: x for key, x in settings.items() if x is not None}:
            groups[f"critics.{name}"] = {"params": [], "name": name, **settings}
    for path, p in policy.named_parameters():
        if p.requires_grad and (moves is None or path.startswith(moves)):
            room, _, rest = path.partition(".")
            network = f"critics.{rest.partition('.')[0]}"
            groups["policy" if room != "critics" else network if network in groups else "critics"]["params"].append(p)
    moved = [group for group in groups.values() if group["params"]]
    if moves is not None and not moved:
        raise UsageError(f"no trainable parameter of the policy has a name that begins with {' or '.join(moves)}")
    return moved
