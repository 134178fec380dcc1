"""Stores of transitions (s, a, r, s', d): replayed experience, data, or both; and how often each is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anypo.errors import RunError, UsageError
from anypo.parts.registry import register_part
from anypo.parts.store.episodes import Expand, Table, scaled, trajectory_values
from anypo.ranges import Count, NonNegative, Positive, Share, Size
from anypo.types import LAST_MASK, MASK, MASKS, NEXT_MASK, Trajectories
from anypo.views import Functional, register_functionals

register_functionals(Functional("nearest", ("action",)))


@register_part("store")
@dataclass(frozen=True)
class Transitions:
    """Minibatches of `batch` transitions, drawn with replacement from all there are (the newest `capacity`, and the data).

    ratio: updates per collected decision; where nothing is collected, `idle` updates a batch. Learning begins when `start`
    transitions are there. share: of every minibatch that is drawn from the data, the rest from what was collected (arXiv
    2302.02948, sec. 4.1); without it both are one. beta: weight of states in the metric of `nearest`.
    """

    batch: Size[int] = 256
    capacity: Count[int] = 1_000_000
    ratio: NonNegative[float] = 1.0
    start: NonNegative[int] = 1000
    share: Share[float] | None = None
    idle: Count[int] = 100
    beta: NonNegative[float] = 2.0
    replays = True

    def open(self) -> OpenTransitions:
        return OpenTransitions(self)

    def chances(self, data: Table, expand: Expand = torch.Tensor.float) -> Float[Tensor, " transition"] | None:
        """How probable each transition of the data is in a minibatch; None: equally. expand: see `OpenTransitions.fill`."""
        return None


@register_part("store")
@dataclass(frozen=True)
class WeightedTrajectories(Transitions):
    """The same with P(transition) proportional to exp(x / temperature), x in [0, 1] its trajectory's return G (`return`), or G
    minus its linear regression on the first state (`advantage`), scaled between the least and the largest of the data.

    Luck is weighted too where outcomes are random. Source: arXiv 2306.13085, eq. 6 and 8.
    """

    by: Literal["return", "advantage"] = "advantage"
    temperature: Positive[float] = 0.1

    def chances(self, data: Table, expand: Expand = torch.Tensor.float) -> Float[Tensor, " transition"]:
        x = scaled(trajectory_values(data, self.by, expand))
        return torch.softmax(x[data["episode"]] / self.temperature, 0)


@dataclass
class OpenTransitions:
    """data: transitions that were there from the start; the rest grows, by doubling, up to the capacity, then the oldest go."""

    recipe: Transitions
    data: Table = field(default_factory=dict)
    kept: Table = field(default_factory=dict)
    size: int = 0
    head: int = 0
    due: float = 0.0
    chances: Tensor | None = None
    tree: Any = None

    def fill(self, data: Table, expand: Expand = torch.Tensor.float) -> None:
        """Take in a data set; `expand` makes numbers of its stored observations."""
        if not len(data["reward"]):
            raise UsageError("the data set is empty")
        self.data, self.expand, self.chances = data, expand, self.recipe.chances(data, expand)
        self.cumulative = None if self.chances is None else self.chances.double().cumsum(0)

    def add(self, rows: Trajectories) -> None:
        table = flattened(rows)
        count = len(table["reward"])
        self.kept = with_masks(self.kept, table) if self.kept else {}
        if not self.kept:
            self.kept = {name: column.new_zeros((1024, *column.shape[1:])) for name, column in table.items()}
        room = len(self.kept["reward"])
        while room < min(self.size + count, self.recipe.capacity):
            room = min(2 * room, self.recipe.capacity)
        if room > len(self.kept["reward"]):
            more = room - len(self.kept["reward"])
            self.kept = {n: torch.cat([c, c.new_zeros((more, *c.shape[1:]))]) for n, c in self.kept.items()}
        at = (self.head + torch.arange(count)) % room
        for name, column in table.items():
            self.kept[name][at] = column
        self.head, self.size = (self.head + count) % room, min(self.size + count, room)
        if self.size + len(self.data.get("reward", ())) >= self.recipe.start:
            self.due += count * self.recipe.ratio

    def draws(self) -> int:
        if not self.kept and self.data:
            return self.recipe.idle
        whole = int(self.due)
        self.due -= whole
        return whole

    def draw(self, generator: torch.Generator) -> Trajectories:
        batch, fixed = self.recipe.batch, len(self.data.get("reward", ()))
        if fixed + self.size == 0:
            raise RunError("the store is empty: there are neither data nor experience")
        if not fixed or not self.size:
            from_data = batch if fixed else 0
        elif self.recipe.share is not None:
            from_data = round(self.recipe.share * batch)
        else:
            of_data = torch.rand(batch, generator=generator) < fixed / (fixed + self.size)
            from_data = int(of_data.sum())
        drawn = []
        if from_data:
            drawn.append(taken(self.data, self._of_data(from_data, generator)))
        if from_data < batch:
            drawn.append(taken(self.kept, torch.randint(self.size, (batch - from_data,), generator=generator)))
        if len(drawn) == 1:
            return minibatch(drawn[0])
        data, experience = drawn[0], with_masks(drawn[1], drawn[0])
        data = with_masks(data, experience)
        return minibatch({n: torch.cat([data[n], experience[n]]) for n in data.keys() & experience.keys()})

    def _of_data(self, count: int, generator: torch.Generator) -> Shaped[Tensor, " drawn"]:
        if self.cumulative is None:
            return torch.randint(len(self.data["reward"]), (count,), generator=generator)
        chance = torch.rand(count, generator=generator, dtype=torch.float64) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, chance).clamp(max=len(self.cumulative) - 1)

    def nearest(self, b: Trajectories) -> Float[Tensor, "row step dim"]:
        """Return the action of the recorded pair nearest to (beta s, a), by Euclidean distance. Source: PRDC, arXiv 2306.06569, eq. 5."""
        if not self.data:
            raise UsageError("the method looks for the nearest recorded action, and there are no data: use a data task")
        if self.tree is None:
            from scipy.spatial import KDTree

            obs = self.expand(self.data["obs"])
            self.mean, self.std = obs.mean(0), obs.std(0, correction=0)
            keys = torch.cat([self.recipe.beta * self._centred(obs), self.data["action"]], 1)
            self.tree = KDTree(keys.numpy())
        keys = torch.cat([self.recipe.beta * self._centred(self.expand(b.trace["obs"])), b.trace["action"]], -1)
        _, index = self.tree.query(keys.reshape(-1, keys.shape[-1]).numpy())
        return self.data["action"][torch.as_tensor(np.asarray(index))].reshape(b.trace["action"].shape)

    def _centred(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / (self.std + 1e-3)

    def state_dict(self) -> dict[str, Any]:
        kept = {name: column[: self.size].clone() for name, column in self.kept.items()}
        return {
            "kept": kept,
            "head": self.head,
            "size": self.size,
            "due": self.due,
            "room": len(self.kept.get("reward", ())),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head, self.size, self.due = state["head"], state["size"], state["due"]
        more = state["room"] - state["size"]
        self.kept = {n: torch.cat([c, c.new_zeros((more, *c.shape[1:]))]) for n, c in state["kept"].items()}


def with_masks(table: Table, other: Table) -> Table:
    """Return a table with the mask columns of the other one; transitions without masks allow everything."""
    shape = len(table["reward"])
    missing = {n: other[n].new_ones((shape, *other[n].shape[1:])) for n in MASKS if n in other and n not in table}
    return {**table, **missing} if missing else table


def taken(table: Table, index: Shaped[Tensor, " drawn"]) -> Table:
    """Gather the rows of a table at `index`."""
    return {name: column.index_select(0, index) for name, column in table.items()}


def minibatch(table: Table) -> Trajectories:
    """Transitions as rows of one decision."""
    extra = {name: table[name].unsqueeze(1) for name in ("terminal", "expert") if name in table}
    trace = {name: table[name].unsqueeze(1) for name in ("obs", "action", "next", *MASKS) if name in table}
    return Trajectories(reward=table["reward"].unsqueeze(1), trace=trace, extra=extra)


def flattened(rows: Trajectories) -> Table:
    """Return the valid decisions of rows as transitions; `last` [N, D] is what follows a row's last decision."""
    valid, last = rows.valid, rows.get("last")
    obs = rows.trace.get("obs")
    reward = rows.reward
    if reward is None and rows.score is not None and valid.shape[1] == 1:
        reward = rows.score.unsqueeze(1)
    if obs is None or reward is None:
        raise UsageError(
            "the method learns from transitions, and this task gives none; use a Gymnasium task or a data set"
        )
    if last is None and valid.shape[1] > 1:
        raise UsageError("the method learns from transitions, and this task does not say what was observed last")
    end = (valid.sum(1) - 1).clamp(min=0)
    index = torch.arange(len(end))

    def following(x: Tensor, last: Tensor | None) -> Tensor:
        after = torch.cat([x[:, 1:], x[:, :1]], 1).clone()
        after[index, end] = x[index, end] if last is None else last
        return after

    terminal = torch.zeros_like(reward)
    terminal[index, end] = 1.0 if rows.done is None else (rows.done != 0).to(reward.dtype)
    table = {
        "obs": obs,
        "action": rows.trace["action"],
        "next": following(obs, last),
        "reward": reward,
        "terminal": terminal,
    }
    if MASK in rows.trace:
        table |= {MASK: rows.trace[MASK], NEXT_MASK: following(rows.trace[MASK], rows.get(LAST_MASK))}
    return {name: column[valid] for name, column in table.items()}
