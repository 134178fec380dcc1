"""Gradient steps: a recipe bound to parameters; the bound object carries the optimizer's state.

Settings left None are the task's recommendation; a method sets only what defines it (REINFORCE: one update per batch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from anypo.errors import UsageError
from anypo.kernels.adamw import optimizer_step, total_norm
from anypo.numbers import Number
from anypo.ranges import Count, NonNegative, Positive

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Gradient:
    """lr: learning rate. epochs: passes over a batch. minibatch: rows per update (single decisions or actions where
    method and policy allow cutting), 0 for the whole batch. grad_norm: the gradient is scaled down to this global norm; networks with
    a bound of their own are scaled apart.
    schedule: of the learning rate over the run, after `warmup` updates that ramp it up. policy_lr: of the policy itself, where
    value networks beside it learn at `lr`.
    """

    lr: NonNegative[Number] | None = None
    epochs: Count[int] | None = None
    minibatch: NonNegative[int] | None = None
    grad_norm: Positive[float] | None = 1.0
    schedule: Schedule | None = None
    warmup: NonNegative[int] | None = None
    policy_lr: NonNegative[Number] | None = None

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(groups), lr=lr)

    def bind(self, groups: Iterable[dict[str, Any]]) -> Descent[Any]:
        """Tie the recipe to parameter groups."""
        return Descent(self, self.optimizer(groups, self.base_lr()))

    def base_lr(self) -> float:
        """Return the learning rate before schedule and warmup."""
        if self.lr is None:
            raise UsageError("the step has no learning rate; set `step.lr`")
        return float(self.lr)


Recipe = TypeVar("Recipe", bound=Gradient)


@dataclass
class Descent(Generic[Recipe]):
    """A recipe bound to parameters. `progress`, the share of the run that is done, is set by the loop and drives the schedule."""

    recipe: Recipe
    optimizer: torch.optim.Optimizer
    updates: int = 0
    progress: float = 0.0
    splits: ClassVar[int] = 1

    def lookahead(self) -> AbstractContextManager[Any]:
        """Take samples and gradients at the present weights."""
        return nullcontext()

    def lr(self) -> float:
        base, progress = self.recipe.base_lr(), min(self.progress, 1.0)
        warm = min(1.0, (self.updates + 1) / self.recipe.warmup) if self.recipe.warmup else 1.0
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return base * warm * shape[self.recipe.schedule or "constant"]

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def update(self, *closures: Callable[[], dict[str, Any]]) -> dict[str, float]:
        """Gradients by the closures, then one step; a gradient that is not finite moves nothing (`skipped` = 1)."""
        parameters = self.parameters
        for p in parameters:
            p.grad = None
        metrics = self.gradients(closures)
        lr, norm = self.lr(), self.clip()
        finite = math.isfinite(norm)
        if finite:
            for group in self.optimizer.param_groups:
                rate = self.recipe.policy_lr if group.get("name") == "policy" else group.get("own_lr")
                group["lr"] = lr if rate is None else float(rate)
            optimizer_step(self.optimizer)
            self.updates += 1
        return {**metrics, "grad_norm": norm, "lr": lr, "skipped": float(not finite)}

    def clip(self) -> float:
        """Scale gradients down to their bounds: that of a network to its own, all others together to the recipe's.

        Returns:
            The norm of the latter before; not finite where any gradient is not.
        """
        common, bad = [], 0.0
        for group in self.optimizer.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            bound = group.get("own_norm")
            if bound is None:
                common += grads
            elif not math.isfinite(norm := scale_down(grads, bound)):
                bad = norm
        return scale_down(common, self.recipe.grad_norm) + bad

    def gradients(self, closures: Sequence[Callable[[], dict[str, Any]]]) -> dict[str, float]:
        """Leave the gradient on the parameters; returns the metrics of the loss."""
        (closure,) = closures
        return {name: float(value) for name, value in closure().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.progress = state["updates"], state["progress"]


def scale_down(grads: list[torch.Tensor], bound: float | None) -> float:
    """Scale gradients in place down to the norm `bound`, if any; return their norm before."""
    norm = total_norm(grads)
    if bound is not None and math.isfinite(norm) and norm + 1e-6 > bound:
        torch._foreach_mul_(grads, bound / (norm + 1e-6))
    return norm
