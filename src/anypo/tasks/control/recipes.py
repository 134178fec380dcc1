"""Loop settings that suit Gymnasium environments."""

from __future__ import annotations

from typing import Any

from anypo.policies.control.observations import has_images

TUNED: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {"lr": 1e-3, "steps": 300_000},
    "Hopper-v5": {"steps": 1_000_000},
}
"""Recipe entries known to suit an environment better than the general ones (for methods with a critic)."""


ON_IMAGES = {"lr": 2.5e-4, "epochs": 3, "minibatch": 256}
"""Recipe entries where a gradient is dear: those of PPO on Atari. Source: Schulman et al. 2017, arXiv 1707.06347, table 5."""


REPLAYED = {"Pendulum-v1": 10_000, "CartPole-v1": 50_000, "Hopper-v5": 200_000}
"""Environment steps for methods that replay transitions."""


def loop_settings(env_id: str, space: Any, limit: int, traits: dict[str, Any], envs: int) -> dict[str, Any]:
    """Return the loop's settings that suit an environment and a method.

    Args:
        env_id: of the environment.
        space: of its observations.
        limit: decisions of an episode at most.
        traits: of the method.
        envs: copies that are stepped together.
    """
    if traits.get("replays"):
        rows = {"requests": envs, "samples": 1, "horizon": max(1, 50 // envs)}
        return rows | {"lr": 3e-4, "epochs": 1, "minibatch": 0, "steps": REPLAYED.get(env_id, 100_000)}
    if traits.get("critic") and not traits.get("whole"):
        rows = {"requests": envs, "samples": 1, "horizon": 256}
        steps = {"lr": 3e-4, "epochs": 10, "minibatch": 64, "schedule": "linear", "steps": 100_000}
        if has_images(space):
            rows, steps = rows | {"horizon": 128}, steps | ON_IMAGES
        if not traits.get("reuse", True):  # a batch used once should be small
            return rows | steps | {"horizon": 16, "minibatch": None, "steps": TUNED.get(env_id, steps)["steps"]}
        return rows | steps | TUNED.get(env_id, {})
    if traits.get("grouped"):
        rows = {"requests": 4, "samples": 8, "horizon": limit}
        steps = {"lr": 1e-3, "epochs": 1, "minibatch": 256}
    else:  # one large step: without a group or a critic the gradient is noisy
        rows = {"requests": 16, "samples": 1, "horizon": limit}
        steps = {"lr": 3e-3, "epochs": 1, "minibatch": 4096}
    return rows | steps | {"steps": TUNED.get(env_id, {}).get("steps", 100_000)}
