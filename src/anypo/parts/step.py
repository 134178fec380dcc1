"""Step: how parameters move. A recipe that is bound to parameters; the bound object carries the optimizer's state.

Settings left None are the task's recommendation; a method sets only what defines it (REINFORCE: one update per batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from anypo.parts._register import register
from anypo.stages import Number

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Gradient:
    """lr: learning rate. epochs: passes over a batch. minibatch: rows per update (single decisions where method and
    policy allow cutting), None for the whole batch. grad_norm: the gradient is scaled down to this global norm.
    schedule: of the learning rate over the run, after `warmup` updates that ramp it up.
    """

    lr: Number | None = None
    epochs: int | None = None
    minibatch: int | None = None
    grad_norm: float | None = 1.0
    schedule: Schedule | None = None
    warmup: int | None = None

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(groups), lr=lr)

    def bind(self, groups: Iterable[dict[str, Any]]) -> Descent:
        """Tie the recipe to parameter groups."""
        assert self.lr is not None
        return Descent(self, self.optimizer(groups, float(self.lr)))


@register("step")
@dataclass(frozen=True)
class Adam(Gradient):
    """Adam with decoupled weight decay. Source: arXiv 1412.6980, 1711.05101."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        groups = list(groups)
        fused = all(p.is_floating_point() for g in groups for p in g["params"])
        return torch.optim.AdamW(groups, lr, self.betas, self.eps, self.weight_decay, fused=fused)


@register("step")
@dataclass(frozen=True)
class RMSProp(Gradient):
    """RMSProp. Source: Hinton, lecture 6e; as used by A3C, arXiv 1602.01783."""

    alpha: float = 0.99
    eps: float = 1e-5

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(list(groups), lr, self.alpha, self.eps)


@register("step")
@dataclass(frozen=True)
class Sgd(Gradient):
    """Plain gradient descent."""


@dataclass
class Descent:
    """A recipe bound to parameters. `progress`, the share of the run that is done, is set by the loop and drives the schedule."""

    recipe: Gradient
    optimizer: torch.optim.Optimizer
    updates: int = 0
    progress: float = 0.0

    def lr(self) -> float:
        assert self.recipe.lr is not None
        base, progress = float(self.recipe.lr), min(self.progress, 1.0)
        warm = min(1.0, (self.updates + 1) / self.recipe.warmup) if self.recipe.warmup else 1.0
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return base * warm * shape[self.recipe.schedule or "constant"]

    def update(self, closure: Callable[[], dict[str, Any]]) -> dict[str, float]:
        """Gradients by the closure, then one step; a gradient that is not finite moves nothing (`skipped` = 1)."""
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.optimizer.zero_grad(set_to_none=True)
        metrics = {name: float(value) for name, value in closure().items()}
        lr = self.lr()
        bound = math.inf if self.recipe.grad_norm is None else self.recipe.grad_norm
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(norm.isfinite())
        if finite:
            torch.nn.utils.clip_grads_with_norm_(parameters, bound, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.updates += 1
        return {**metrics, "grad_norm": float(norm), "lr": lr, "skipped": float(not finite)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.progress = state["updates"], state["progress"]
