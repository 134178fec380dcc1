"""Gradient steps with implicit gradient transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from anypo.parts.registry import register_part
from anypo.parts.step.gradient import Descent, Gradient
from anypo.ranges import NonNegative, Positive


@register_part("step")
@dataclass(frozen=True)
class Transport(Gradient):
    """Momentum without stale gradients: d <- (1 - eta) d + eta g(theta~), theta <- theta + lr d / |d|, with samples and
    gradients taken at the lookahead theta~ = theta + (1 - eta)/eta (theta - theta_previous).

    Source: N-PG-IGT, arXiv 2302.01734, algorithm 1. The evaluated policy is theta. d starts as the first gradient.
    """

    eta: NonNegative[float] = 0.5
    grad_norm: Positive[float] | None = None

    def bind(self, groups: Iterable[dict[str, Any]]) -> TransportDescent:
        return TransportDescent(self, self.optimizer(groups, self.base_lr()))


@dataclass
class TransportDescent(Descent[Transport]):
    """Descent along the transported direction; between updates the parameters are those of the lookahead."""

    here: list[torch.Tensor] = field(default_factory=list)
    previous: list[torch.Tensor] = field(default_factory=list)
    direction: list[torch.Tensor] = field(default_factory=list)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        self.here = [p.detach().clone() for p in self.parameters]
        self._look_ahead()
        try:
            yield
        finally:
            self._set_parameters(self.here)

    def _look_ahead(self) -> None:
        """Move the parameters to the lookahead point."""
        reach = 1 / self.recipe.eta - 1
        before = self.previous or self.here
        self._set_parameters([x + reach * (x - y) for x, y in zip(self.here, before, strict=True)])

    @torch.no_grad()
    def _set_parameters(self, at: list[torch.Tensor]) -> None:
        for p, x in zip(self.parameters, at, strict=True):
            p.copy_(x)

    def update(self, *closures: Callable[[], dict[str, Any]]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        metrics, lr = self.gradients(closures), self.lr()
        grads = [torch.zeros_like(p) if p.grad is None else -p.grad for p in self.parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        finite = bool(norm.isfinite())
        if finite:
            eta = self.recipe.eta if self.direction else 1.0
            old = self.direction or grads
            self.direction = [(1 - eta) * d + eta * g for d, g in zip(old, grads, strict=True)]
            length = torch.nn.utils.get_total_norm(self.direction).clamp(min=1e-30)
            here = self.here
            self.here = [x + lr * d / length for x, d in zip(here, self.direction, strict=True)]
            self.previous = here
            self.updates += 1
            self._look_ahead()
        return {**metrics, "grad_norm": float(norm), "lr": lr, "skipped": float(not finite)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"previous": self.previous, "direction": self.direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.previous, self.direction = state["previous"], state["direction"]
