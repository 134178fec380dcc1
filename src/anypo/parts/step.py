"""Step: how parameters move. A recipe that is bound to parameters; the bound object carries the optimizer's state.

Settings left None are the task's recommendation; a method sets only what defines it (REINFORCE: one update per batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from anypo.parts._register import register
from anypo.stages import Number

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Gradient:
    """lr: learning rate. epochs: passes over a batch. minibatch: rows per update (single decisions where method and
    policy allow cutting), 0 for the whole batch. grad_norm: the gradient is scaled down to this global norm.
    schedule: of the learning rate over the run, after `warmup` updates that ramp it up. policy_lr: of the policy itself, where
    value networks beside it learn at `lr`.
    """

    lr: Number | None = None
    epochs: int | None = None
    minibatch: int | None = None
    grad_norm: float | None = 1.0
    schedule: Schedule | None = None
    warmup: int | None = None
    policy_lr: Number | None = None

    def optimizer(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(groups), lr=lr)

    def bind(self, groups: Iterable[dict[str, Any]]) -> Descent:
        """Tie the recipe to parameter groups."""
        assert self.lr is not None
        return Descent(self, self.optimizer(groups, float(self.lr)))


class FusedAdamW(torch.optim.AdamW):
    """AdamW that on a CPU can call the fused kernel itself: for a small network, what torch does around it takes most of a step."""

    @torch.no_grad()
    def at_once(self) -> bool:
        """The step by one call of the kernel per group; False, and nothing happens, where that cannot be."""
        groups = [(g, params) for g in self.param_groups if (params := [p for p in g["params"] if p.grad is not None])]
        if not all(g["fused"] and p.device.type == "cpu" and p in self.state for g, params in groups for p in params):
            return False
        for group, params in groups:
            states = [self.state[p] for p in params]
            first, second, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return True


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
        return FusedAdamW(groups, lr, self.betas, self.eps, self.weight_decay, fused=fused)


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


def total_norm(tensors: list[torch.Tensor]) -> float:
    """Euclidean norm of all of them together."""
    if len({t.device for t in tensors}) != 1:
        return float(torch.nn.utils.get_total_norm(tensors))
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))


@dataclass
class Descent:
    """A recipe bound to parameters. `progress`, the share of the run that is done, is set by the loop and drives the schedule."""

    recipe: Gradient
    optimizer: torch.optim.Optimizer
    updates: int = 0
    progress: float = 0.0
    pieces: ClassVar[int] = 1

    def ahead(self) -> AbstractContextManager[Any]:
        """Samples and gradients are taken where the policy stands."""
        return nullcontext()

    def lr(self) -> float:
        assert self.recipe.lr is not None
        base, progress = float(self.recipe.lr), min(self.progress, 1.0)
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
        lr, bound = self.lr(), self.recipe.grad_norm
        slopes = [p.grad for p in parameters if p.grad is not None]
        norm = total_norm(slopes)
        finite = math.isfinite(norm)
        if finite:
            if bound is not None and norm + 1e-6 > bound:
                torch._foreach_mul_(slopes, bound / (norm + 1e-6))
            own = self.recipe.policy_lr
            for group in self.optimizer.param_groups:
                group["lr"] = float(own) if own is not None and group.get("name") == "policy" else lr
            if not (isinstance(self.optimizer, FusedAdamW) and self.optimizer.at_once()):
                self.optimizer.step()
            self.updates += 1
        return {**metrics, "grad_norm": norm, "lr": lr, "skipped": float(not finite)}

    def gradients(self, closures: Sequence[Callable[[], dict[str, Any]]]) -> dict[str, float]:
        """Leave the gradient on the parameters; returns the metrics of the loss."""
        (closure,) = closures
        return {name: float(value) for name, value in closure().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.progress = state["updates"], state["progress"]


@register("step")
@dataclass(frozen=True)
class SnrAdam(Adam):
    """Adam whose learning rate follows the gradient's signal-to-noise ratio: lr * SNR / (1 + SNR), SNR = |grad J|^2 / V.

    Every minibatch is halved: |grad J|^2 is estimated by <g_1, g_2> (not below 0) and V = tr Cov of their mean by
    |g_1 - g_2|^2 / 4, both as moving averages with this decay. Source: OBLR-PO, arXiv 2511.23310 (descent lemma).
    """

    decay: float = 0.9

    def bind(self, groups: Iterable[dict[str, Any]]) -> Descent:
        assert self.lr is not None
        return SnrDescent(self, self.optimizer(groups, float(self.lr)))


@dataclass
class SnrDescent(Descent):
    signal: float = 0.0
    noise: float = 0.0
    pieces: ClassVar[int] = 2

    def lr(self) -> float:
        whole = self.signal + self.noise
        return super().lr() * (self.signal / whole if self.noise > 0 else 1.0)

    def gradients(self, closures: Sequence[Callable[[], dict[str, Any]]]) -> dict[str, float]:
        halves, metrics = [], []
        for closure in closures:
            self.optimizer.zero_grad(set_to_none=True)
            metrics.append({name: float(value) for name, value in closure().items()})
            halves.append([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        for p, *grads in zip(self.parameters, *halves, strict=True):
            p.grad = torch.stack(grads).mean(0)
        if len(halves) == 2:
            dot = sum(float((a * b).sum()) for a, b in zip(*halves, strict=True))
            gap = sum(float((a - b).square().sum()) for a, b in zip(*halves, strict=True))
            decay = getattr(self.recipe, "decay")  # noqa: B009
            if dot == dot and gap == gap and abs(dot) < math.inf and gap < math.inf:
                self.signal = decay * self.signal + (1 - decay) * max(dot, 0.0)
                self.noise = decay * self.noise + (1 - decay) * gap / 4
        return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]} | {
            "snr": self.signal / max(self.noise, 1e-30)
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"signal": self.signal, "noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.signal, self.noise = state["signal"], state["noise"]


@register("step")
@dataclass(frozen=True)
class Transport(Gradient):
    """Momentum without stale gradients: d <- (1 - eta) d + eta g(theta~), theta <- theta + lr d / |d|, with samples and
    gradients taken at the lookahead theta~ = theta + (1 - eta)/eta (theta - theta_previous).

    Source: N-PG-IGT, arXiv 2302.01734, algorithm 1. The evaluated policy is theta. d starts as the first gradient.
    """

    eta: float = 0.5
    grad_norm: float | None = None

    def bind(self, groups: Iterable[dict[str, Any]]) -> Descent:
        assert self.lr is not None
        return TransportDescent(self, self.optimizer(groups, float(self.lr)))


@dataclass
class TransportDescent(Descent):
    here: list[torch.Tensor] = field(default_factory=list)
    previous: list[torch.Tensor] = field(default_factory=list)
    direction: list[torch.Tensor] = field(default_factory=list)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        self.here = [p.detach().clone() for p in self.parameters]
        self._look()
        try:
            yield
        finally:
            self._stand(self.here)

    def _look(self) -> None:
        """Stand at the lookahead point."""
        reach = 1 / self.recipe.eta - 1  # pyright: ignore[reportAttributeAccessIssue]
        before = self.previous or self.here
        self._stand([x + reach * (x - y) for x, y in zip(self.here, before, strict=True)])

    @torch.no_grad()
    def _stand(self, at: list[torch.Tensor]) -> None:
        for p, x in zip(self.parameters, at, strict=True):
            p.copy_(x)

    def update(self, *closures: Callable[[], dict[str, Any]]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        metrics, lr = self.gradients(closures), self.lr()
        slopes = [torch.zeros_like(p) if p.grad is None else -p.grad for p in self.parameters]
        norm = torch.nn.utils.get_total_norm(slopes)
        finite = bool(norm.isfinite())
        if finite:
            eta = self.recipe.eta if self.direction else 1.0  # pyright: ignore[reportAttributeAccessIssue]
            old = self.direction or slopes
            self.direction = [(1 - eta) * d + eta * g for d, g in zip(old, slopes, strict=True)]
            length = torch.nn.utils.get_total_norm(self.direction).clamp(min=1e-30)
            here = self.here
            self.here = [x + lr * d / length for x, d in zip(here, self.direction, strict=True)]
            self.previous = here
            self.updates += 1
            self._look()
        return {**metrics, "grad_norm": float(norm), "lr": lr, "skipped": float(not finite)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"previous": self.previous, "direction": self.direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.previous, self.direction = state["previous"], state["direction"]
