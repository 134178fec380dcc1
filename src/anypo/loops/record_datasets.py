"""Data sets recorded during training: snapshots of the policy act, and their episodes are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.policies.weights import snapshot, swap_params
from anypo.runs.run import Run
from anypo.tasks.control.gym import Gym
from anypo.tasks.control.minari_data import write_minari
from anypo.types import Request, Trajectories

QUALITIES: dict[str, tuple[tuple[str, float], ...]] = {
    "random": (("random", 1.0),),
    "medium": (("medium", 1.0),),
    "expert": (("expert", 1.0),),
    "mixed": (("random", 0.8), ("expert", 0.2)),
    "medium-expert": (("medium", 0.5), ("expert", 0.5)),
    "noisy": (("noisy", 1.0),),
}
"""Whose episodes a data set holds, and which share. medium: the policy on the way whose return is nearest to half-way from random
to expert; noisy: the expert, three actions in ten at random. Source of the recipes: arXiv 2111.04714, sec. 4."""


def train_snapshots(run: Run, watch: Callable[[dict[str, Any]], None]) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Train, and keep the policy at every evaluation: (return, weights)."""
    snapshots: list[tuple[float, dict[str, torch.Tensor]]] = []

    def keep(record: dict[str, Any]) -> None:
        watch(record)
        if f"eval/{run.metric}" in record:
            snapshots.append((record[f"eval/{run.metric}"], snapshot(run.policy)))

    learn(run, keep)
    return snapshots


def record_datasets(
    run: Run,
    qualities: list[str],
    episodes: int,
    namespace: str,
    watch: Callable[[dict[str, Any]], None] = lambda r: None,
) -> dict[str, float]:
    """Train, then write episodes of every quality as the Minari data set NAMESPACE/QUALITY-v0; return their mean returns.

    Args:
        run: on a Gymnasium task.
        qualities: names of `QUALITIES`.
        episodes: per data set.
        namespace: of the data sets.
        watch: called with the record of every batch.

    Raises:
        UsageError: the task is not a Gymnasium environment.
    """
    task = run.task
    if not isinstance(task, Gym):
        raise UsageError(f"data sets are collected from Gymnasium tasks, {task.name} is none")
    met = train_snapshots(run, watch)
    task.scale = None  # the data hold the environment's own rewards
    chance = record_episodes(run, met[0][1], 20, random=1.0)
    low, (high, best) = float(chance.need("reward").sum(1).mean()), max(met, key=lambda pair: pair[0])
    half = min(met, key=lambda pair: abs(pair[0] - (low + high) / 2))[1]
    weights = {"random": best, "medium": half, "expert": best, "noisy": best}
    chances = {"random": 1.0, "noisy": 0.3}
    means = {}
    for quality in qualities:
        rows = [
            record_episodes(run, weights[stage], max(1, round(share * episodes)), random=chances.get(stage, 0.0))
            for stage, share in QUALITIES[quality]
        ]
        data = Trajectories.cat(rows)
        name = f"{namespace}/{quality}-v0"
        write_minari(name, task, data, low, high, run.method.card.id)
        means[name] = float(data.need("reward").sum(1).mean())
    return means


def record_episodes(run: Run, weights: dict[str, torch.Tensor], episodes: int, random: float) -> Trajectories:
    """Record whole episodes, from starts not used before, with the actions as the environment received them.

    Args:
        run: its task and policy.
        weights: the policy's for these episodes.
        episodes: how many.
        random: probability that an action is uniform instead.
    """
    first = run.pool.position
    run.pool.position += episodes
    requests = run.pool.number([Request(first + i, random=random) for i in range(episodes)])
    with torch.no_grad(), swap_params(run.policy, weights):
        rows, _ = run.task.rollout(run.policy, requests, run.config.seed)
        action = rows.trace["action"]
        flat = run.policy.env_action(action.reshape(-1, *action.shape[2:]))
    return rows.put({"env_action": torch.as_tensor(flat.reshape(*action.shape[:2], *flat.shape[1:]))})
