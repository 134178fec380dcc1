"""Value functions that are learned from transitions: which next value, which backup, which regression, which penalty.

Fields: q [N, T, E] of the decisions taken under an ensemble of E; reward [N, T]; terminal [N, T], 1 where the episode ended
by itself (a time limit is not an end). Targets are constants. Every part returns a scalar to minimise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.reduce import Mean
from anypo.parts.statistics import masked_mean
from anypo.stages import Draw, Level, Network, Number, Refresh, View, number
from anypo.types import Trajectories

POLYAK = 0.005
"""Share by which targets follow, unless a method says otherwise."""


def field(b: Trajectories, name: str) -> Tensor:
    """A field the part has declared to read."""
    found = b.get(name)
    assert found is not None
    return found


def backup(b: Trajectories, after: Float[Tensor, "row step"], gamma: float) -> Float[Tensor, "row step"]:
    """r + gamma (1 - d) * value of what follows, as a constant."""
    return (field(b, "reward") + gamma * (1 - field(b, "terminal")) * after).detach()


def regress(error: Float[Tensor, "row step member"], b: Trajectories, huber: float | None = None) -> Float[Tensor, ""]:
    """Sum over the ensemble of the mean of error^2 / 2, or of its Huber form, linear beyond `huber`."""
    half = 0.5 * error.square()
    if huber is not None:
        half = torch.where(error.abs() <= huber, half, huber * (error.abs() - 0.5 * huber))
    return Mean("token")(half.sum(-1), b)


def member_subset(
    values: Float[Tensor, "... member"], subset: int | None, clock: Number
) -> Float[Tensor, "... chosen"]:
    """`subset` members of the ensemble, others at every tick of the clock; all without one."""
    if subset is None:
        return values
    order = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(int(float(clock))))
    return values[..., order[:subset].to(values.device)]


@register("critic")
@dataclass(frozen=True)
class TD:
    """sum_i mean (Q_i - y)^2 / 2,  y = r + gamma (1 - d) V(s').

    next: V(s') = `policy`: min_i Qbar_i(s', a') - alpha log pi(a'|s'), a' ~ pi; `target`: min_i Qbar_i(s', a'), a' the target
    policy's own action plus clip(N(0, noise^2), +-clip); `value`: the network v at s'; `max`: max_a' Qbar(s', a'); `double`:
    Qbar(s', argmax_a' Q(s', a')). Qbar: the anchor `target`, which follows by `tau` after every `every`-th update. subset:
    the min runs over so many members, drawn anew at every tick of `clock`. huber: linear beyond this error.
    Source: SAC, arXiv 1812.05905, eq. 5; TD3, arXiv 1802.09477, alg. 1; IQL, arXiv 2110.06169, eq. 6; Double DQN, arXiv
    1509.06461, eq. 4; REDQ, arXiv 2101.05982.
    """

    next: Literal["policy", "target", "value", "max", "double"] = "policy"
    gamma: float = 0.99
    ensemble: int = 2
    alpha: Number = 0.0
    noise: float = 0.0
    clip: float = 0.0
    norm: bool = False
    huber: float | None = None
    subset: int | None = None
    clock: Number = 0.0
    tau: float = POLYAK
    every: int = 1
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"q": View("q")}

    @property
    def soft(self) -> bool:
        return self.next == "policy" and self.alpha != 0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("q", "reward", "terminal", *self.views)

    @property
    def networks(self) -> dict[str, Network]:
        return {"q": Network("action", self.ensemble, norm=self.norm)}

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=self.every, decay=1 - self.tau, per="update")}

    @property
    def views(self) -> dict[str, View]:
        if self.next == "value":
            return {"v_next": View("v", at="next")}
        if self.next in ("max", "double"):
            now = {"q_choices": View("q_all", at="next")} if self.next == "double" else {}
            return {"q_next_all": View("q_all", of="target", at="next"), **now}
        if self.next == "target":
            draw = Draw("target", "next", "mode", noise=self.noise, clip=self.clip)
            return {"q_next": View("q", "target", at="next", draw=draw)}
        draw = Draw(at="next")
        soft = {"logp_next": View("logp", at="next", draw=draw)} if self.soft else {}
        return {"q_next": View("q", "target", at="next", draw=draw), **soft}

    def after(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """V(s')."""
        if self.next == "value":
            return field(b, "v_next")
        if self.next in ("max", "double"):
            every = field(b, "q_next_all").min(-1).values
            if self.next == "max":
                return every.max(-1).values
            best = field(b, "q_choices").mean(-1).argmax(-1, keepdim=True)
            return every.gather(-1, best).squeeze(-1)
        worst = member_subset(field(b, "q_next"), self.subset, self.clock).min(-1).values
        return worst - number(self.alpha) * field(b, "logp_next") if self.soft else worst

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        y, q = backup(b, self.after(b), self.gamma), field(b, "q")
        loss = regress(q - y.unsqueeze(-1), b, self.huber)
        return loss, {"q_loss": loss.detach(), "q": masked_mean(q.detach().mean(-1), b.valid)}


@register("critic")
@dataclass(frozen=True)
class GaussianTD:
    """Q_i as a Gaussian return N(q_i, std_i^2): omega_i mean[(q_i - y_q)^2 / (2 (std_i^2 + eps)) + the std's own likelihood],

    whose gradient is -(y_q - q_i) / (std_i^2 + eps) in q_i and -((y_z - q_i)^2 - std_i^2) / (std_i^3 + eps) in std_i. j = argmin
    q_i' of the target; y_q = r + gamma (1 - d) (q_j' - alpha log pi'), y_z the same with z_j' ~ N(q_j', std_j'^2) (cut at 3
    deviations), then within 3 m_i of q_i; omega_i = m_i^2; m_i: moving mean of std_i (`mean1`, `mean2`). a' ~ the target policy.
    Source: DSAC-T, arXiv 2310.05858; the scale m^2 as in Jingliang-Duan/DSAC-v2.
    """

    alpha: Number = 0.0
    mean1: Number = 1.0
    mean2: Number = 1.0
    gamma: float = 0.99
    eps: float = 0.1
    tau: float = POLYAK
    substitute: bool = True
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"q": Network("action", 2, spread=True)}
    live: ClassVar[dict[str, View]] = {"q": View("q"), "q_std": View("q_std")}
    draw: ClassVar[Draw] = Draw("target", "next")
    views: ClassVar[dict[str, View]] = {
        "q_next": View("q", "target", at="next", draw=draw),
        "q_next_std": View("q_std", "target", at="next", draw=draw),
        "logp_next": View("logp", "target", at="next", draw=draw),
        "luck": View("luck"),
    }
    reads = ("q", "q_std", "reward", "terminal", *views)

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=1, decay=1 - self.tau, per="update")}

    def targets(self, b: Trajectories) -> tuple[Float[Tensor, "row step"], Float[Tensor, "row step"]]:
        """(y_q, y_z) before the latter is bounded."""
        q_next, std_next = field(b, "q_next"), field(b, "q_next_std")
        worst = q_next.argmin(-1, keepdim=True)
        mean, std = q_next.gather(-1, worst).squeeze(-1), std_next.gather(-1, worst).squeeze(-1)
        bonus = number(self.alpha) * field(b, "logp_next")
        lucky = mean + field(b, "luck").clamp(-3, 3) * std
        y_z = backup(b, lucky - bonus, self.gamma)
        return (backup(b, mean - bonus, self.gamma) if self.substitute else y_z), y_z

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        y_q, y_z = self.targets(b)
        q, std = field(b, "q"), field(b, "q_std")
        m = torch.stack([torch.as_tensor(number(mean), dtype=q.dtype) for mean in (self.mean1, self.mean2)])
        now, width = q.detach(), std.detach()
        near = now + torch.minimum(torch.maximum(y_z.unsqueeze(-1) - now, -3 * m), 3 * m)
        slope_q = (now - y_q.unsqueeze(-1)) / (width.square() + self.eps)
        slope_std = (width.square() - (near - now).square()) / (width.pow(3) + self.eps)
        loss = Mean("token")((m.square() * (slope_q * q + slope_std * std)).sum(-1), b)
        each = [masked_mean(width[..., k], b.valid) for k in (0, 1)]
        told = {"q": masked_mean(now.mean(-1), b.valid), "q_std1": each[0], "q_std2": each[1]}
        return loss, {"q_loss": masked_mean((now - y_q.unsqueeze(-1)).square().mean(-1), b.valid), **told}


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
        v = field(b, "v")
        delta = field(b, "q_taken").min(-1).values.detach() - v
        loss = Mean("token")(self.f(delta, b), b)
        return loss, {"v_loss": loss.detach(), "v": masked_mean(v.detach(), b.valid)}


@register("critic")
@dataclass(frozen=True)
class Expectile(ImplicitValue):
    """f = |t - 1(delta < 0)| delta^2: t = 0.5 is the mean, t -> 1 the maximum. Source: IQL, arXiv 2110.06169, eq. 5."""

    t: float = 0.7

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        return (self.t - (delta < 0).to(delta.dtype)).abs() * delta.square()


@register("critic")
@dataclass(frozen=True)
class Gumbel(ImplicitValue):
    """f = (exp(z) - z - 1) exp(-m), z = min(delta / beta, clip), m = max(max z, -1): V = beta log E exp(Q / beta).

    m, a constant of the batch, keeps exp finite; without `scaled` it is 0.
    Source: XQL, arXiv 2301.02328, eq. 11 and appendix; Div99/XQL.
    """

    beta: float = 2.0
    clip: float | None = 7.0
    scaled: bool = True
    level: ClassVar[Level] = "batch"

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        z = delta / self.beta
        z = z if self.clip is None else z.clamp(max=self.clip)
        if not self.scaled:
            return z.exp() - z - 1
        top = torch.where(b.valid, z, -math.inf).max().clamp(min=-1.0).detach()
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        return (z - top).exp() - (z + 1) * (-top).exp()


@register("critic")
@dataclass(frozen=True)
class DualValue(ImplicitValue):
    """f = lam fbar(delta) - (1 - lam) delta, fbar = max(x, 0) (`tv`) or max(x + x^2/4, 0) for x > 0 (`chi2`).

    Source: Dual RL (f-DVL), arXiv 2302.08560; hari-sikchi/DVL, whose chi2 line is positive again below -4.
    """

    lam: float = 0.7
    f_divergence: Literal["tv", "chi2"] = "tv"

    def f(self, delta: Tensor, b: Trajectories) -> Tensor:
        positive = delta.relu()
        fbar = positive if self.f_divergence == "tv" else positive + positive.square() / 4
        return self.lam * fbar - (1 - self.lam) * delta


@register("critic")
@dataclass(frozen=True)
class Conservative:
    """alpha sum_i mean[temperature logsumexp_a (Q_i(s, a) / temperature) - Q_i(s, a_data)].

    The logsumexp runs over all choices, or (`draws` each) over uniform actions, the policy's at s and its at s', each minus its
    log-density. Source: CQL, arXiv 2006.04779, eq. 4 and appendix F.
    """

    alpha: Number = 5.0
    draws: int | None = 10
    temperature: float = 1.0
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()

    @property
    def proposals(self) -> dict[str, Draw]:
        if self.draws is None:
            return {}
        return {
            "uniform": Draw(how="uniform", count=self.draws),
            "here": Draw(count=self.draws),
            "next": Draw(at="next", count=self.draws),
        }

    @property
    def live(self) -> dict[str, View]:
        # the policy's actions for s' are judged at s, as in the reference implementation
        if self.draws is None:
            return {"q": View("q"), "q_all": View("q_all")}
        return {"q": View("q")} | {f"q_at_{name}": View("q", draw=draw) for name, draw in self.proposals.items()}

    @property
    def views(self) -> dict[str, View]:
        return {f"logp_of_{name}": View("logp", at=draw.at, draw=draw) for name, draw in self.proposals.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.live, *self.views)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q = field(b, "q")
        if self.draws is None:
            every = field(b, "q_all")
        else:
            every = torch.cat(
                [field(b, f"q_at_{n}") - field(b, f"logp_of_{n}").unsqueeze(-1) for n in self.proposals], 2
            )
        gap = self.temperature * (every / self.temperature).logsumexp(2) - q
        loss = Mean("token")(gap.sum(-1), b)
        return number(self.alpha) * loss, {"conservative_gap": masked_mean(gap.detach().mean(-1), b.valid)}


@register("critic")
@dataclass(frozen=True)
class PolicyValue:
    """mean (V(s) - y)^2, y = r + gamma (1 - d) min(min_i Q_i(s', a'), min_i Qbar_i(s', a')), a' the smoothed target action.

    Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    gamma: float = 0.99
    noise: float = 0.2
    clip: float = 0.5
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"v": Network("state")}
    live: ClassVar[dict[str, View]] = {"v": View("v")}

    @property
    def views(self) -> dict[str, View]:
        draw = Draw("target", "next", "mode", noise=self.noise, clip=self.clip)
        return {
            "q_next": View("q", "target", at="next", draw=draw),
            "q_next_now": View("q", at="next", draw=draw),
        }

    @property
    def reads(self) -> tuple[str, ...]:
        return ("v", "reward", "terminal", *self.views)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        worst = torch.minimum(field(b, "q_next"), field(b, "q_next_now")).min(-1).values
        v = field(b, "v")
        loss = Mean("token")((v - backup(b, worst, self.gamma)).square(), b)
        return loss, {"v_loss": loss.detach(), "v": masked_mean(v.detach(), b.valid)}


@register("critic")
@dataclass(frozen=True)
class AdvantageAutoencoder:
    """mean[w |recon - a|^2 (mean over dimensions)] + KL / 2, w = 1[Q_1(s, a) > V(s)]: good actions alone are encoded.

    Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"vae": Network("autoencoder")}
    live: ClassVar[dict[str, View]] = {"vae": View("vae"), "vae_kl": View("vae_kl")}
    views: ClassVar[dict[str, View]] = {"q_now": View("q"), "v_now": View("v"), "taken": View("taken")}
    reads = ("vae", "vae_kl", "q_now", "v_now", "taken")

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        error = (field(b, "vae") - field(b, "taken")).square().mean(-1)
        good = (field(b, "q_now")[..., 0] > field(b, "v_now")).to(error.dtype)
        mean = Mean("token")
        loss = mean(good * error, b) + 0.5 * mean(field(b, "vae_kl"), b)
        return loss, {"vae_loss": loss.detach(), "good": masked_mean(good, b.valid)}


@register("critic")
@dataclass(frozen=True)
class MixtureMatching:
    """beta (mean_D Q(s, pi) - mean_E Q(s, a)) + (1/4) mean_mix (gamma V(s') - Q(s, a))^2, summed over the ensemble.

    E: transitions of the expert (`expert` [N, T] = 1), the others are S; in the mixture E has the share beta whatever its share
    of the batch; D: all states. Needs no reward. Source: ReCOIL, arXiv 2302.08560, chi2 case.
    """

    beta: float = 0.5
    gamma: float = 0.99
    ensemble: int = 2
    tau: float = POLYAK
    level: ClassVar[Level] = "batch"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"q": View("q"), "q_policy": View("q", draw=Draw())}
    views: ClassVar[dict[str, View]] = {"v_next": View("v", at="next")}
    reads = ("q", "q_policy", "v_next", "expert", "terminal")

    @property
    def networks(self) -> dict[str, Network]:
        return {"q": Network("action", self.ensemble)}

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"target": Refresh(every=1, decay=1 - self.tau, per="update")}

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        q, expert = field(b, "q"), (field(b, "expert") != 0) & b.valid
        other = ~expert & b.valid
        residual = (self.gamma * (1 - field(b, "terminal")) * field(b, "v_next")).detach().unsqueeze(-1) - q
        square = residual.square().sum(-1)
        mean, of_expert = Mean("token"), b.but(mask=expert)
        mix = self.beta * mean(square, of_expert) + (1 - self.beta) * mean(square, b.but(mask=other))
        gap = mean(field(b, "q_policy").sum(-1), b) - mean(q.sum(-1), of_expert)
        loss = self.beta * gap + 0.25 * mix
        return loss, {"q_loss": loss.detach(), "q": masked_mean(q.detach().mean(-1), b.valid)}
