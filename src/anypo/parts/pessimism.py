"""A pair of pessimistic value heads, and a divergence penalty whose threshold a controller moves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.credit import spread
from anypo.parts.knobs import Moving, register_knob
from anypo.parts.ratio import log_ratio
from anypo.parts.reduce import Mean
from anypo.parts.statistics import masked_mean, scored
from anypo.stages import Level, Number, Reduce, View
from anypo.types import Trajectories

HEADS = ("value", "value_b")


def soft_min(b: Trajectories, alpha: float) -> Float[Tensor, "row step"]:
    """V = -alpha (logsumexp(-v1/alpha, -v2/alpha) - log 2): the smaller one as alpha -> 0, their mean as alpha -> inf.
    Without a second head, the value itself."""
    assert b.value is not None
    other = b.get("value_b")
    if other is None:
        return b.value
    return -alpha * (torch.logaddexp(-b.value / alpha, -other / alpha) - math.log(2))


@register("credit")
@dataclass(frozen=True)
class PessimisticBaseline:
    """A_i = R_i - mean_t V, whitened over the rows; returns: R_i on every decision; V_old = V.
    Source: SAFE, ryyzn9/SAFE, trainers/safe.py (there V is read once per row, after its last token).
    """

    alpha: float = 0.3
    views: ClassVar[dict[str, View]] = {"value_b": View("value_b")}
    reads = ("value",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        assert b.score is not None
        value = soft_min(b, self.alpha).detach()
        a = b.score - b.row_mean(value)
        known = ~a.isnan()
        mean = masked_mean(a, known)
        std = (torch.where(known, a - mean, 0.0).square().sum() / (known.sum() - 1).clamp(min=1)).sqrt()
        a = torch.where(known, (a - mean) / (std + 1e-8), 0.0)
        target = spread(b, b.score.nan_to_num())
        return b.but(advantage=spread(b, a), returns=target, value_old=torch.where(b.valid, value, 0.0))


@register("critic")
@dataclass(frozen=True)
class PessimisticValue:
    """coef * token-mean of 0.5 [huber(V, R) + huber(V_old + clip(V - V_old, +-clip), R)], V the soft minimum of two heads.

    Source: SAFE, ryyzn9/SAFE, models/critic.py and trainers/safe.py.
    """

    coef: Number = 0.5
    alpha: float = 0.3
    clip: float = 0.2
    delta: float = 0.5
    heads: ClassVar[tuple[str, ...]] = HEADS
    level: ClassVar[Level] = "decision"
    reads = ("value", "returns", "value_old")

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.returns is not None and b.value_old is not None
        value, target = soft_min(b, self.alpha), b.returns.detach()
        near = b.value_old + (value - b.value_old).clamp(-self.clip, self.clip)

        def huber(v: Tensor) -> Tensor:
            return torch.nn.functional.huber_loss(v, target, reduction="none", delta=self.delta)

        loss = Mean("token")(0.5 * (huber(value) + huber(near)), b)
        return float(self.coef) * loss, {"value_loss": loss.detach()}


@register_knob
@dataclass(unsafe_hash=True)
class KlController(Moving):
    """Threshold clip((base + u) phase, 0.1, 0.6) of a divergence, and its moving average `average`.

    u is a PID of the error between the reward's velocity and 0.001; the phase factor follows the last rewards: 1.5 in the
    first 50 updates, 1.2 while they climb, 1 when converged, else 0.8. Source: ryyzn9/SAFE, controllers/.
    """

    base: float = 0.3
    gains: tuple[float, float, float] = (0.3, 0.01, 0.05)
    average: float = field(default=0.0, init=False, compare=False)
    smooth: float | None = field(default=None, init=False, compare=False)
    integral: float = field(default=0.0, init=False, compare=False)
    error: float = field(default=0.0, init=False, compare=False)
    adjustment: float = field(default=0.0, init=False, compare=False)
    rewards: list[float] = field(default_factory=list, init=False, compare=False)
    every: ClassVar[Literal["batch", "update"]] = "update"

    def __float__(self) -> float:
        return min(max((self.base + self.adjustment) * self.phase(), 0.1), 0.6)

    def __str__(self) -> str:
        return "pid"

    def phase(self) -> float:
        """The factor of the present phase."""
        if len(self.rewards) < 50:
            return 1.5
        recent, before = self.rewards[-50:], self.rewards[:-50] if len(self.rewards) >= 100 else self.rewards[-50:]
        mean = sum(recent) / 50
        if mean > sum(before) / len(before) + 0.01:
            return 1.2
        std = math.sqrt(sum((r - mean) ** 2 for r in recent) / 50)
        return 1.0 if std < 0.02 and mean > 0.7 else 0.8

    def update(self, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        self.average = 0.9 * self.average + 0.1 * metrics["kl_ref"]
        outcome = scored(b).score
        assert outcome is not None
        reward = float(outcome.nanmean())
        if not math.isfinite(reward):  # nobody was judged
            return
        self.rewards = [*self.rewards, reward][-100:]
        if self.smooth is None:
            self.smooth = reward
            return
        before, self.smooth = self.smooth, 0.95 * self.smooth + 0.05 * reward
        error, (p, i, d) = self.smooth - before - 0.001, self.gains
        self.integral = min(max(self.integral + error, -1.0), 1.0)
        self.adjustment = p * error + i * self.integral + d * (error - self.error)
        self.error = error


@register("terms")
@dataclass(frozen=True)
class EntropyGatedKl:
    """0 while Ks = 0.9 Ks_before + 0.1 K stays below the threshold, else 0.1 (Ks - threshold)^2 max(0.5, 2 / (H + 0.1)).

    K: token-mean of log pi - log pi_ref, with gradient; H: token-mean entropy, without. detached: K without gradient too, as in
    the released code, where the penalty therefore moves nothing. Source: SAFE, ryyzn9/SAFE, controllers/entropy_aware.py.
    """

    threshold: Number = field(default_factory=KlController)
    detached: bool = False
    level: ClassVar[Level] = "batch"
    reads = ("logp", "logp_ref", "entropy")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.entropy is not None
        mean, threshold = Mean("token"), float(self.threshold)
        kl = mean(log_ratio(b, "ref"), b)
        kl = kl.detach() if self.detached else kl
        smooth = 0.9 * getattr(self.threshold, "average", 0.0) + 0.1 * kl
        gate = (2.0 / (mean(b.entropy.detach(), b) + 0.1)).clamp(min=0.5)
        penalty = 0.1 * (smooth - threshold).relu().square() * gate * bool(b.valid.any())
        return penalty, {
            "kl_ref": kl.detach(),
            "kl_threshold": kl.new_tensor(threshold),
            "kl_penalty": penalty.detach(),
        }
