"""State values as a soft maximum of Q over the actions in the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import Inner, NonNegative, Positive
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Network, View


@dataclass(frozen=True)
class ImplicitValue:
    """mean f(delta), delta = min_i Qbar_i(s, a) - V(s): V becomes a soft maximum of Q over the actions in the data alone."""

    norm: bool = False
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"v": View("v")}
    views: ClassVar[dict[str, View]] = {"q_taken": View("q", "target")}
    reads = ("v", "q_taken")

    @property
    def networks(self) -> dict[str, Network]:
        return {"v": Network("state", norm=self.norm)}

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        raise NotImplementedError

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        v = b.need("v")
        delta = b.need("q_taken").min(-1).values.detach() - v
        loss = token_mean(self.f(delta, b), b)
        return loss, {"v_loss": loss.detach(), "v": masked_mean(v.detach(), b.mask)}


@register_part("critic")
@dataclass(frozen=True)
class Expectile(ImplicitValue):
    """f = |t - 1(delta < 0)| delta^2: t = 0.5 is the mean, t -> 1 the maximum. Source: IQL, arXiv 2110.06169, eq. 5."""

    t: Inner[float] = 0.7

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        return (self.t - (delta < 0).to(delta.dtype)).abs() * delta.square()


@register_part("critic")
@dataclass(frozen=True)
class Gumbel(ImplicitValue):
    """f = (exp(z) - z - 1) exp(-m), z = min(delta / beta, clip), m = max(max z, -1): V = beta log E exp(Q / beta).

    m, a constant of the batch, keeps exp finite; without `scaled` it is 0.
    Source: XQL, arXiv 2301.02328, eq. 11 and appendix; Div99/XQL.
    """

    beta: Positive[float] = 2.0
    clip: NonNegative[float] | None = 7.0
    scaled: bool = True
    level: ClassVar[Level] = "batch"

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        z = delta / self.beta
        z = z if self.clip is None else z.clamp(max=self.clip)
        if not self.scaled:
            return z.expm1() - z
        top = torch.where(b.valid, z, -math.inf).max().clamp(min=-1.0).detach()
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        return (z - top).exp() - (z + 1) * (-top).exp()


@register_part("critic")
@dataclass(frozen=True)
class DualValue(ImplicitValue):
    """f = lam fbar(delta) - (1 - lam) delta, fbar = max(x, 0) (`tv`) or max(x + x^2/4, 0) for x > 0 (`chi2`).

    Source: Dual RL (f-DVL), arXiv 2302.08560; hari-sikchi/DVL, whose chi2 line is positive again below -4.
    """

    lam: Inner[float] = 0.7
    f_divergence: Literal["tv", "chi2"] = "tv"

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        positive = delta.relu()
        fbar = positive if self.f_divergence == "tv" else positive + positive.square() / 4
        return self.lam * fbar - (1 - self.lam) * delta
