"""What a head minimises: f of its value and the target y, a mean over decisions of the sum over an ensemble.

Implicit values: with y = min_i Qbar_i(s, a) of the actions in the data, V becomes a soft maximum of Q over these alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.numbers import Number, number
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import describe, register_part
from anypo.ranges import Finite, Inner, NonNegative, Positive, Share
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View

if TYPE_CHECKING:
    from anypo.parts.critic.head import Head


class Regression:
    """The mean over decisions of f(value, y, b), summed over an ensemble. spread: values have a standard deviation too."""

    level: ClassVar[Level] = "decision"
    spread: ClassVar[bool] = False

    def views(self, head: str, ahead: Any) -> dict[str, View]:
        """Return the fields it needs beside the head's own.

        Args:
            head: name of the head.
            ahead: the head's next action.
        """
        return {}

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        """Return the loss of every value."""
        raise NotImplementedError

    def loss(self, head: Head, b: Trajectories) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the scalar to minimise, and metrics of its own."""
        value, y = b.need(head.head), head.back_up(b, head.after(b))
        if value.ndim == y.ndim:
            return token_mean(self.f(value, y, b), b), {}
        return token_mean(self.f(value, y.unsqueeze(-1), b).sum(-1), b), {}


@register_part("regress")
@dataclass(frozen=True)
class Squared(Regression):
    """f = coef (Q - y)^2. Source: Sutton and Barto, 2018, eq. 9.1."""

    coef: NonNegative[float] = 0.5

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        return self.coef * (value - y).square()


@register_part("regress")
@dataclass(frozen=True)
class Huber(Regression):
    """f = e^2 / 2 with e = Q - y, and delta (|e| - delta / 2) where |e| > delta. Source: Huber, 1964."""

    delta: Positive[float] = 1.0

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        error = value - y
        far = self.delta * (error.abs() - 0.5 * self.delta)
        return torch.where(error.abs() <= self.delta, 0.5 * error.square(), far)


@register_part("regress")
@dataclass(frozen=True)
class Expectile(Regression):
    """f = |t - 1(u < 0)| u^2, u = y - V: t = 0.5 is the mean, t -> 1 the maximum. Source: IQL, arXiv 2110.06169, eq. 5."""

    t: Inner[float] = 0.7

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        u = y - value
        return (self.t - (u < 0).to(u.dtype)).abs() * u.square()


@register_part("regress")
@dataclass(frozen=True)
class Gumbel(Regression):
    """f = (exp(z) - z - 1) exp(-m), z = min((y - V) / beta, clip), m = max(max z, -1): V = beta log E exp(y / beta).

    m, a constant of the batch, keeps exp finite; without `scaled` it is 0.
    Source: XQL, arXiv 2301.02328, eq. 11 and appendix; Div99/XQL.
    """

    beta: Positive[float] = 2.0
    clip: NonNegative[float] | None = 7.0
    scaled: bool = True
    level: ClassVar[Level] = "batch"

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        z = (y - value) / self.beta
        z = z if self.clip is None else z.clamp(max=self.clip)
        if not self.scaled:
            return z.expm1() - z
        valid = b.valid if z.ndim == 2 else b.valid.unsqueeze(-1)
        top = torch.where(valid, z, -math.inf).max().clamp(min=-1.0).detach()
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        return (z - top).exp() - (z + 1) * (-top).exp()


@register_part("regress")
@dataclass(frozen=True)
class DualValue(Regression):
    """f = lam fbar(u) - (1 - lam) u, u = y - V, fbar = max(x, 0) (`tv`) or max(x + x^2/4, 0) for x > 0 (`chi2`).

    Source: Dual RL (f-DVL), arXiv 2302.08560; hari-sikchi/DVL, whose chi2 line is positive again below -4.
    """

    lam: Inner[float] = 0.7
    f_divergence: Literal["tv", "chi2"] = "tv"

    def f(self, value: Tensor, y: Tensor, b: Trajectories) -> Tensor:
        u = y - value
        positive = u.relu()
        fbar = positive if self.f_divergence == "tv" else positive + positive.square() / 4
        return self.lam * fbar - (1 - self.lam) * u


@register_part("regress")
@dataclass(frozen=True)
class GaussianReturn(Regression):
    """The return as a Gaussian N(q_i, std_i^2): omega_i mean[(q_i - y_q)^2 / (2 (std_i^2 + eps)) + the std's own likelihood],

    whose gradient is -(y_q - q_i) / (std_i^2 + eps) in q_i and -((y_z - q_i)^2 - std_i^2) / (std_i^3 + eps) in std_i. y_q backs up
    q_j', j = argmin q_i' at the next action, y_z backs up z_j' ~ N(q_j', std_j'^2) (cut at 3 deviations) and is then within 3 m_i
    of q_i; without `substitute` y_q is y_z. omega_i = m_i^2, m_i = (1 - rate) mean_i + rate mean(std_i); the batch's own mean where
    `mean1`, `mean2` are not given, or NaN as before the first. For an ensemble of two.
    Source: DSAC-T, arXiv 2310.05858; the scale m^2 as in Jingliang-Duan/DSAC-v2.
    """

    mean1: Finite[Number] | None = None
    mean2: Finite[Number] | None = None
    rate: Share[float] = 0.005
    eps: Positive[float] = 0.1
    substitute: bool = True
    level: ClassVar[Level] = "batch"
    spread: ClassVar[bool] = True

    def views(self, head: str, ahead: Any) -> dict[str, View]:
        draw = getattr(ahead, "draw", None)
        if draw is None:
            raise UsageError(f"a Gaussian return needs a next action that is proposed, not `{describe(ahead)}`")
        return {f"{head}_next_std": View(f"{head}_std", "target", at="next", draw=draw), "luck": View("luck")}

    def targets(self, head: Head, b: Trajectories) -> tuple[Float[Tensor, "row step"], Float[Tensor, "row step"]]:
        """Return (y_q, y_z) before the latter is bounded."""
        q_next, std_next = b.need(f"{head.head}_next"), b.need(f"{head.head}_next_std")
        worst = q_next.argmin(-1, keepdim=True)
        mean, std = q_next.gather(-1, worst).squeeze(-1), std_next.gather(-1, worst).squeeze(-1)
        y_z = head.back_up(b, mean + b.need("luck").clamp(-3, 3) * std)
        return (head.back_up(b, mean) if self.substitute else y_z), y_z

    def loss(self, head: Head, b: Trajectories) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        y_q, y_z = self.targets(head, b)
        name = head.head
        q, std = b.need(name), b.need(f"{name}_std")
        now, width = q.detach(), std.detach()
        batch = torch.stack([masked_mean(width[..., k], b.mask) for k in (0, 1)])
        means = [math.nan if mean is None else number(mean) for mean in (self.mean1, self.mean2)]
        before = torch.stack([torch.as_tensor(mean, dtype=q.dtype) for mean in means])
        m = torch.where(before.isnan(), batch, (1 - self.rate) * before + self.rate * batch)
        near = now + torch.minimum(torch.maximum(y_z.unsqueeze(-1) - now, -3 * m), 3 * m)
        slope_q = (now - y_q.unsqueeze(-1)) / (width.square() + self.eps)
        slope_std = (width.square() - (near - now).square()) / (width.pow(3) + self.eps)
        error = masked_mean((now - y_q.unsqueeze(-1)).square().mean(-1), b.mask)
        loss = token_mean((m.square() * (slope_q * q + slope_std * std)).sum(-1), b)
        return loss, {f"{name}_loss": error, f"{name}_std1": m[0], f"{name}_std2": m[1]}
