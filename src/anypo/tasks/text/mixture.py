"""Several text tasks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError, unknown
from anypo.protocols import HasBaseTexts
from anypo.ranges import Seed
from anypo.tasks.text.task import TextTask
from anypo.types import Request, Trajectories


class TaskMixture:
    """The records of several text tasks, each scored by its own task; rows say which they belong to (`task`), and the held-out
    measures are taken for each.

    parts: the tasks. The measure that heads the run is the mean of theirs.
    """

    unit = "batches"
    continuing = False

    def __init__(self, name: str, parts: Sequence[TextTask]):
        self.name, self.parts = name, list(parts)
        self.labels = tuple(part.name for part in parts)
        if len(set(self.labels)) < len(parts) or len(parts) < 2:
            raise UsageError(f"a mixture joins two or more different tasks, not {', '.join(self.labels)}")
        metrics = {part.metric for part in parts}
        self.metric = metrics.pop() if len(metrics) == 1 else "reward"
        self.sampled = all(part.sampled for part in parts)
        alike = len({part.channels for part in parts}) == 1
        self.channels = parts[0].channels if alike else ("score",)
        self.records = [record for part in parts for record in part.records]
        self.heldout = [record for part in parts for record in part.heldout]
        self.starts: int | None = len(self.records)
        self.base = next((part for part in parts if isinstance(part, HasBaseTexts)), None)
        self.default_policy = None if self.base is None else self.base.default_policy

    @property
    def max_new(self) -> int | None:
        """Tokens of the longest completions; None while a task leaves its number to the policy."""
        budgets = [part.max_new for part in self.parts if part.max_new is not None]
        return max(budgets) if len(budgets) == len(self.parts) else None

    def place(self, start: int | None) -> tuple[int, int]:
        """Return the task of a start, and the start's number there."""
        number = 0 if start is None else start
        for k, part in enumerate(self.parts):
            if number < len(part.records):
                return k, number
            number -= len(part.records)
        raise UsageError(f"the task {self.name} has {self.starts} starts, not one of number {start}")

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Completions of the requested records, each by its own task."""
        metrics: dict[str, float] = {}
        batches = []
        for k, asked in self._by_task(requests).items():
            part = self.parts[k]
            rows, measured = part.rollout(policy, [request for _, request in asked], seed)
            batches.append(self._own(k, rows, [i for i, _ in asked]))
            metrics |= {f"{name}/{part.name}": value for name, value in measured.items() if name != "tokens"}
            metrics["tokens"] = metrics.get("tokens", 0.0) + measured.get("tokens", 0.0)
        return join(batches), metrics

    def demonstrate(self, policy: Any, requests: list[Request]) -> Trajectories:
        """Return the reference solutions of the requested records."""
        by_task = self._by_task(requests).items()
        batches = [
            self._own(k, self.parts[k].demonstrate(policy, [request for _, request in asked]), [i for i, _ in asked])
            for k, asked in by_task
        ]
        return join(batches)

    def _by_task(self, requests: list[Request]) -> dict[int, list[tuple[int, Request]]]:
        """Return the requests of each task with their places, counted as the task counts its starts."""
        asked: dict[int, list[tuple[int, Request]]] = {}
        for i, request in enumerate(requests):
            k, start = self.place(request.start)
            asked.setdefault(k, []).append((i, replace(request, start=start)))
        return asked

    def _own(self, k: int, rows: Trajectories, places: list[int]) -> Trajectories:
        group = torch.tensor(places, device=rows.valid.device)[rows.need("group")]
        if self.channels != self.parts[k].channels and rows.score is not None:
            rows = rows.but(scores=rows.score[:, None])
        return rows.but(group=group, task=torch.full_like(group, k))

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Measure each task on its held-out records; a measure of all is the mean over the tasks that have it."""
        by_name: dict[str, list[float]] = {}
        measures: dict[str, float] = {}
        for part in self.parts:
            for name, value in part.evaluate(policy, seed, episodes).items():
                measures[f"{name}/{part.name}"] = value
                by_name.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in by_name.items()} | measures

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Return the recipe of the first task, without its horizon: each task has its own. Every task is asked, for one may refuse."""
        recipes = [part.recipe(traits) for part in self.parts]
        return {**recipes[0], "horizon": None}

    def prepare(self, policy: Any) -> None:
        for part in self.parts:
            part.prepare(policy)

    def show_prompt(self, policy: Any) -> str:
        """Return the first training prompt of the first task as the model reads it."""
        return self.parts[0].show_prompt(policy)

    def texts(self, policy: Any, b: Trajectories) -> list[tuple[str, str]]:
        """Return prompt and completion of every row, as the model reads them."""
        return self.parts[0].texts(policy, b)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the pool keeps which record comes next."""


def join(batches: list[Trajectories]) -> Trajectories:
    """Return the rows of several tasks, those of a request together and requests in order."""
    budgets = [b.budget for b in batches if b.budget is not None]
    rows = Trajectories.cat(batches).but(budget=max(budgets, default=None))
    order: Tensor = rows.need("group").argsort(stable=True)
    return rows.rows(order)


def make_mixture(names: str, *, of: dict[Any, dict[str, Any]] | None = None, seed: Seed = 0) -> TaskMixture:
    """Join text tasks.

    Args:
        names: of the tasks, separated by commas.
        of: options of the tasks, by their place from 0 or their name: `--task.of.1.max_new 20`.
        seed: the run's.
    """
    from anypo.tasks import make_task

    listed = [name.strip() for name in names.split(",")]
    options = {str(key): value for key, value in (of or {}).items()}
    parts = []
    for i, name in enumerate(listed):
        chosen = options.pop(str(i), None) or options.pop(name, {})
        part = make_task({"name": name, **chosen}, seed)
        if not isinstance(part, TextTask):
            raise UsageError(f"a mixture joins text tasks, which {name} is not")
        parts.append(part)
    if options:
        raise unknown("task of the mixture:", next(iter(options)), [*listed, *map(str, range(len(listed)))])
    return TaskMixture(f"mixture:{names}", parts)
