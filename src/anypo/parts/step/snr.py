"""Adam scaled by the signal-to-noise ratio of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from anypo.parts.registry import register_part
from anypo.parts.step.gradient import Descent
from anypo.parts.step.optimizers import Adam
from anypo.ranges import Decay, NonNegative


@register_part("step")
@dataclass(frozen=True)
class SnrAdam(Adam):
    """Adam whose learning rate follows the gradient's signal-to-noise ratio: lr * SNR / (1 + SNR), SNR = |grad J|^2 / V.

    Every minibatch is halved: |grad J|^2 is estimated by <g_1, g_2> (not below 0) and V = tr Cov of their mean by
    |g_1 - g_2|^2 / 4, both as moving averages with this decay. Source: OBLR-PO, arXiv 2511.23310 (descent lemma).
    """

    decay: Decay[float] = 0.9

    def bind(self, groups: Iterable[dict[str, Any]]) -> SnrDescent:
        return SnrDescent(self, self.optimizer(groups, self.base_lr()))


@dataclass
class SnrDescent(Descent[SnrAdam]):
    """Descent that estimates the signal and the noise of the gradient from the two halves of a minibatch."""

    signal: float = 0.0
    noise: NonNegative[float] = 0.0
    splits: ClassVar[int] = 2

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
            decay = self.recipe.decay
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
