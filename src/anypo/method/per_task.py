"""A method for each task of a mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError, unknown
from anypo.method.knob_state import move_knobs
from anypo.method.method import Method
from anypo.numbers import Knob
from anypo.ranges import NonNegative, check
from anypo.stages import LEVELS, Level
from anypo.types import Trajectories
from anypo.views import Network, Refresh, View

COMMON = ("collect", "store", "step")
"""Stages that the methods of all tasks share."""


class PerTask(Method):
    """loss = sum_k w_k loss_k(rows of task k), where loss_k, and the credit before it, are those of the task's own method.

    base: collects, stores and steps. members: the method of each task, with its weight, in order. labels: names of the tasks;
    metrics carry them. Knobs of the shared stages move with the whole batch, those of a task's method with its own rows.
    """

    def __init__(self, base: Method, members: Sequence[tuple[Method, float]], labels: Sequence[str]):
        super().__init__(base.card, moves=base.moves, **base.stages)
        self.members, self.labels = list(members), list(labels)
        for method in (base, *self.methods):
            if method.later or method.traits["replays"]:
                raise UsageError(
                    f"{method.card.id} cannot be one of several methods: it has phases, or replays transitions"
                )
            if method.traits["imitates"] != base.traits["imitates"]:
                raise UsageError(
                    f"{base.card.id} collects other rows than {method.card.id} learns from, which they would share"
                )

    @property
    def methods(self) -> list[Method]:
        """The methods, one a task."""
        return [method for method, _ in self.members]

    def _merged(self, name: str) -> dict[str, Any]:
        """Return a declaration of all methods in one dict; two that differ under one name are refused."""
        merged: dict[str, Any] = {}
        for method in self.methods:
            for key, value in getattr(method, name).items():
                if merged.setdefault(key, value) != value:
                    raise UsageError(
                        f"the methods {' and '.join(m.card.id for m in self.methods)} read different things as {key!r}"
                    )
        return merged

    @property
    def traits(self) -> dict[str, bool]:
        return {name: any(method.traits[name] for method in self.methods) for name in super().traits}

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for method in self.methods for name in method.heads))

    @cached_property
    def networks(self) -> dict[str, Network]:
        return self._merged("networks")

    @cached_property
    def anchors(self) -> dict[str, Refresh]:
        return self._merged("anchors")

    @cached_property
    def views(self) -> dict[str, View]:
        return self._merged("views")

    @cached_property
    def late_views(self) -> dict[str, View]:
        return self._merged("late_views")

    @property
    def live(self) -> dict[str, View]:
        return self._merged("live")

    @property
    def switched(self) -> tuple[bool, ...]:
        return tuple(on for method in self.methods for on in method.switched)

    @cached_property
    def level(self) -> Level:
        return LEVELS[max(LEVELS.index(method.level) for method in self.methods)]

    def current(self) -> Method:
        members = [(method.current(), weight) for method, weight in self.members]
        same = all(new is old for (new, _), old in zip(members, self.methods, strict=True))
        return self if same else PerTask(self, members, self.labels)

    @cached_property
    def phases(self) -> tuple[Method, ...]:
        return (self,)

    def knobs(self) -> list[tuple[str, Knob]]:
        labelled = [
            (f"{label}/{path}", knob) for k, label in enumerate(self.labels) for path, knob in self._own_knobs(k)
        ]
        return self._shared_knobs() + labelled

    def _shared_knobs(self) -> list[tuple[str, Knob]]:
        return [(path, knob) for path, knob in super().knobs() if path.partition(".")[0] in COMMON]

    def _own_knobs(self, k: int) -> list[tuple[str, Knob]]:
        """Return the knobs of a task's method, less those of stages it shares."""
        return [(path, knob) for path, knob in self.methods[k].knobs() if path.partition(".")[0] not in COMMON]

    def prepare(self, b: Trajectories) -> Trajectories:
        """Run score and credit of each task's method on its rows; the rows stay in order."""
        pieces, order = [], []
        for k, rows in self._by_task(b):
            pieces.append(self.methods[k].prepare(b.rows(rows)))
            order.append(rows)
        back = torch.cat(order).argsort()
        return fill_missing(pieces).rows(back).clean()

    def loss_of_clean(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = torch.zeros((), device=b.valid.device), {}
        for k, rows in self._by_task(b):
            method, weight = self.members[k]
            loss, measured = method.loss_of_clean(b.rows(rows))
            total = total + weight * loss
            metrics |= {f"{name}/{self.labels[k]}": value for name, value in measured.items()}
        return total, {"loss": total.detach(), **metrics}

    def update(self, every: str, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        move_knobs(self._shared_knobs(), every, metrics, progress, b)
        for k, rows in self._by_task(b):
            suffix = f"/{self.labels[k]}"
            measured = {name.removesuffix(suffix): value for name, value in metrics.items() if name.endswith(suffix)}
            move_knobs(self._own_knobs(k), every, {**metrics, **measured}, progress, b.rows(rows))

    def _by_task(self, b: Trajectories) -> list[tuple[int, Tensor]]:
        """Return the rows of every task that has some."""
        task = torch.zeros_like(b.lengths) if b.task is None else b.task
        by_task = [(k, (task == k).nonzero()[:, 0]) for k in range(len(self.labels))]
        return [(k, rows) for k, rows in by_task if len(rows)]


def fill_missing(pieces: list[Trajectories]) -> Trajectories:
    """Join batches of which some lack [row, step] or [row] fields that others have: zeros, of weights ones, which nothing reads.

    Args:
        pieces: prepared rows of the tasks.
    """
    columns = [piece.to_dict() for piece in pieces]
    like: dict[str, Tensor] = {}
    for column in columns:
        like |= {name: tensor for name, tensor in column.items() if isinstance(tensor, Tensor) and name != "mask"}
    complete = []
    for piece, column in zip(pieces, columns, strict=True):
        rows, steps = piece.shape
        for name in like.keys() - column.keys():
            shape = (rows, steps, *like[name].shape[2:]) if like[name].ndim > 1 else (rows,)
            column[name] = like[name].new_full(shape, 1 if name == "weight" else 0)
        complete.append(Trajectories.from_dict(column))
    return Trajectories.cat(complete)


def per_task(base: Method, chosen: dict[Any, Any], labels: Sequence[str], find: Callable[[str], Method]) -> Method:
    """Return the method of a mixture.

    Args:
        base: of tasks that are not named, each with a copy of its own.
        chosen: by the label or number of a task: the id of a method, or {method: ID, weight: W}.
        labels: names of the tasks.
        find: makes a method of its id.

    Raises:
        UsageError: there is no such task, it is named twice, or a method cannot be one of several.
    """
    members: dict[int, tuple[Method, float]] = {}
    for name, value in chosen.items():
        key, path = str(name), f"methods.{name}"
        if key not in labels and not (key.isdigit() and int(key) < len(labels)):
            raise UsageError(f"{path}: the mixture has no such task; it has {', '.join(labels)}")
        k = labels.index(key) if key in labels else int(key)
        if k in members:
            raise UsageError(f"{path}: the task {labels[k]} has a method already")
        spec = {"method": value} if isinstance(value, str) else value
        if not isinstance(spec, dict) or "method" not in spec:
            raise UsageError(f"{path} takes the id of a method, or {{method: ID, weight: W}}, not {value!r}")
        for setting in spec.keys() - {"method", "weight"}:
            raise unknown(f"setting of {path}:", str(setting), ("method", "weight"))
        members[k] = find(str(spec["method"])), check(f"{path}.weight", NonNegative[float], spec.get("weight", 1.0))
    return PerTask(base, [members.get(k) or (copy.deepcopy(base), 1.0) for k in range(len(labels))], labels)
