"""Policies that make an action out of noise step by step: flow matching and denoising diffusion. A step is a decision."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.policies.anchor import applied, snapshot
from anypo.policies.control import Decisions, MLPPolicy, chosen
from anypo.policies.perceptron import multilayer
from anypo.types import Trajectories

FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the time features cos(pi f t), sin(pi f t)."""
BOX = 1.0
"""The environment's bounds, as the policy stores actions."""


class Denoiser(MLPPolicy):
    """x_0 ~ N(0, I), x_{k+1} ~ N(mean(x_k, k, o), std(x_k, k, o)^2) for k = 0..K-1; the action is x_K. K = `steps`.

    Every step is one decision: its logp is log N(x_{k+1}; mean, std) and its entropy that of the Gaussian, both the mean (or
    the `sum`, the density itself) over the components of the action, in nats. The start x_0 follows no parameter and is no
    decision. With `tuned`, only so many last steps are; the others are taken by a frozen copy of the network.
    Greedy actions start from noise too, and then follow the subclass's deterministic sampler.
    All decisions of one action share the value V(o), a tanh network on the observation as in `MLPPolicy`; actions, their
    scale and the normalization of observations are its as well.

    Beside logp and entropy `evaluate` gives, per decision: score_norm, |d logp / d mean|^2 of the density; step_mean [N, T, A],
    step_std (root mean square over components) and step_width (1/K) of the transition; logp_noise, log N(x_0; 0, 1) at the
    first step and 0 at the others; guess [N, T, A], what the network says at the decision's draw (time, noise) about the final
    action; noise_share, 1 - that time; and under the name in `imitation` minus the mean squared error of the guess.
    `trace` gives the trace of an expert's action: the forward process through one noise, so demonstrations have logps too.

    Trace, per decision: obs, latent x_k, next x_{k+1}, step k, action x_K, and the draw: time in (0, 1), the k-th out of
    (k/K, (k+1)/K), and noise.
    """

    implicit = True
    told = frozenset(
        ("logp", "entropy", "score_norm", "step_mean", "step_std", "step_width", "logp_noise", "guess", "noise_share")
    )

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[int] = (64, 64),
        steps: int = 10,
        tuned: int | None = None,
        over: Literal["mean", "sum"] = "mean",
        value: bool | Sequence[str] = True,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__(observation_space, action_space, hidden=hidden, value=value, normalize=normalize, seed=seed)
        if self.log_std is None:
            raise UsageError(f"a generative policy needs a Box of actions, not {action_space}")
        if steps < 1:
            raise UsageError(f"a generative policy needs at least one step, not {steps}")
        if tuned is not None and not 1 <= tuned <= steps:
            raise UsageError(f"of {steps} steps at least one and at most all can be tuned, not {tuned}")
        self.steps, self.over = steps, over
        self.held = 0 if tuned is None else steps - tuned
        self.size = len(self.log_std)
        self.log_std = None
        width = len(self.encode.boxed) + self.size + 2 * len(FREQUENCIES)
        # without saturation: near the action the velocity and the noise are steep functions of x
        self.actor = multilayer([width, *hidden, self.size], 0.01, torch.Generator().manual_seed(seed), nn.ReLU)

        self.hold()

    def hold(self) -> None:
        """Freeze the network as it is for the steps that are not tuned; behaviour cloning does this when it ends."""
        self.base = snapshot(self.actor)

    @property
    def functionals(self) -> frozenset[str]:
        return frozenset({*self.told, self.imitation, *self.heads})

    # ---------------------------------------------------------------- what a subclass says

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        """Mean and standard deviation of x_{k+1}."""
        raise NotImplementedError

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        """x_{k+1} without noise."""
        raise NotImplementedError

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        """The forward process: action and noise mixed, noise alone at time 0 and the action alone at time 1."""
        raise NotImplementedError

    def lesson(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        """What the network should say on the blend."""
        raise NotImplementedError

    def clock(self, time: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
        """The times at which the network is trained, out of uniform ones in (0, 1)."""
        return time

    # ---------------------------------------------------------------- sampling and evaluation

    def distribution(self, features: Tensor, mask: Tensor | None) -> Any:
        raise UsageError("the actions of a generative policy have no distribution that could be written down")

    def network(
        self,
        features: Float[Tensor, "draw dim"],
        x: Float[Tensor, "draw component"],
        time: Float[Tensor, " draw"],
    ) -> Float[Tensor, "draw component"]:
        return self.actor(torch.cat([features, x, clockwork(time)], -1))

    @torch.no_grad()
    def act(
        self,
        obs: Float[Tensor, "batch dim"],
        generator: torch.Generator,
        *,
        greedy: bool = False,
        action_mask: Tensor | None = None,
        random: float = 0.0,
        noise: float = 0.0,
        valued: bool = True,
    ) -> Decisions:
        """Run the chain for a batch of encoded observations."""
        if random or noise:
            raise UsageError(f"the policy {type(self).__name__} explores by its own noise, not by random actions")
        features, n, shape = self.features(obs), len(obs), (len(obs), self.steps, self.size)
        x = torch.randn(n, self.size, generator=generator)
        kicks = torch.zeros(shape) if greedy else self.jitter(shape, generator)
        chain, logps = [x], []
        for k in range(self.steps):
            step = torch.full((n,), k)
            with applied(self.actor, self.base) if k < self.held else nullcontext():
                mean, std = self.transition(features, x, step)
                x = self.greedy(features, x, step) if greedy else mean + std * kicks[:, k]
            chain.append(x)
            logps.append(self.density(x, mean, std))
        values = self.values(features) if valued else None
        trace = self.draws(obs, x, generator) | {
            "latent": torch.stack(chain[:-1], 1),
            "next": torch.stack(chain[1:], 1),
        }
        logp, trace = torch.stack(logps, 1)[:, self.held :], {k: t[:, self.held :] for k, t in trace.items()}
        return Decisions(x, logp, None if values is None else values[:, 0], trace)

    def jitter(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The standard normal numbers of a chain."""
        return torch.randn(shape, generator=generator)

    def density(self, x: Float[Tensor, "draw component"], mean: Tensor, std: Tensor) -> Float[Tensor, " draw"]:
        """log N(x; mean, std^2), over components as `over` says."""
        return self.together(-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi))

    def together(self, x: Float[Tensor, "draw component"]) -> Float[Tensor, " draw"]:
        return x.mean(-1) if self.over == "mean" else x.sum(-1)

    def draws(
        self, obs: Float[Tensor, "batch dim"], action: Float[Tensor, "batch component"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One draw (time, noise) per step for the matching loss of an action, stratified over the steps."""
        shape = len(obs), self.steps
        step = torch.arange(self.steps).expand(shape)
        return {
            "obs": obs[:, None].expand(*shape, -1),
            "action": action[:, None].expand(*shape, -1),
            "step": step,
            "time": (step + torch.rand(shape, generator=generator)) / self.steps,
            "noise": torch.randn(*shape, self.size, generator=generator),
        }

    def trace(
        self, obs: Float[Tensor, "batch dim"], action: Float[Tensor, "batch component"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        found = self.draws(obs, action, generator)
        noise = torch.randn(len(obs), 1, self.size, generator=generator)
        times = torch.linspace(0, 1, self.steps + 1)[:, None].expand(len(obs), -1, 1)
        chain = self.blend(action[:, None].expand(-1, self.steps + 1, -1), noise.expand(-1, self.steps + 1, -1), times)
        return found | {"latent": chain[:, :-1], "next": chain[:, 1:]}

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None, frozen: bool = False
    ) -> dict[str, Float[Tensor, "row step *event"]]:
        if layer is not None:
            raise UsageError("the method reads an inner layer of the policy, which only language models offer")
        if missing := set(want) - self.functionals:
            raise UsageError(f"the policy {type(self).__name__} cannot give {min(missing)!r}")
        valid = chosen(b)
        at = {name: x[valid] for name, x in b.trace.items()}
        features, found = self.features(at["obs"]), {}
        if {"logp", "entropy", "score_norm", "step_mean", "step_std"} & set(want):
            mean, std = self.transition(features, at["latent"], at["step"])
            found |= {
                "logp": self.density(at["next"], mean, std),
                "entropy": self.together(std.log() + 0.5 * math.log(2 * math.pi * math.e)),
                "score_norm": ((at["next"] - mean) / std.square()).square().sum(-1),
                "step_mean": mean,
                "step_std": std.square().mean(-1).sqrt(),
            }
        if {"guess", self.imitation} & set(want):
            time = self.clock(at["time"])
            blend = self.blend(at["action"], at["noise"], time[:, None])
            guess = self.network(features, blend, time)
            wrong = guess - self.lesson(at["action"], at["noise"])
            found |= {"guess": guess, self.imitation: -wrong.square().mean(-1)}
        if "logp_noise" in want:
            start = self.density(at["latent"], torch.zeros(()), torch.ones(()))
            found["logp_noise"] = torch.where(at["step"] == 0, start, 0.0)
        if "noise_share" in want:
            found["noise_share"] = 1 - self.clock(at["time"])
        if "step_width" in want:
            found["step_width"] = torch.full((len(features),), 1 / self.steps, dtype=features.dtype)
        if set(self.heads) & set(want):
            values = self.values(features)
            assert values is not None
            found |= {name: values[:, k] for k, name in enumerate(self.heads)}
        where = valid.nonzero(as_tuple=True)
        return {
            name: x.new_zeros(*valid.shape, *x.shape[1:]).index_put(where, x)
            for name, x in found.items()
            if name in want
        }


class FlowPolicy(Denoiser):
    """Flow matching with the noise at time 0: x_t = (1 - t) z + t a, z ~ N(0, I), and the network learns v = a - z.

    Greedy: Euler steps x + v(x, k/K) / K. Otherwise, with h = 1/K and t = k h, by `noise`:
    sde: mean = x (1 - s^2 h / (2 (1 - t))) + v h (1 + s^2 t / (2 (1 - t))), std = s sqrt(h), s = level sqrt((1 - t) / t), at t = 0
    with t = h in the denominator: the marginals are those of the flow, whatever `level`.
    learned: mean = clip(x + h v, -1, 1), std of each component between `low` and `high`, by a network of its own, noise cut at 3 std.
    `imitation`: cfm, minus the squared error of v, the mean over components.
    Source: Flow matching, arXiv 2210.02747; sde: Flow-GRPO, arXiv 2505.05470 (there with the noise at time 1); learned: ReinFlow,
    arXiv 2505.22094.
    """

    imitation = "cfm"

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[int] = (64, 64),
        steps: int = 10,
        tuned: int | None = None,
        noise: Literal["sde", "learned"] = "sde",
        level: float = 0.7,
        low: float = 0.1,
        high: float = 0.24,
        over: Literal["mean", "sum"] = "mean",
        value: bool | Sequence[str] = True,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__(
            observation_space, action_space, hidden=hidden, steps=steps, tuned=tuned, over=over, value=value, normalize=normalize,
            seed=seed,
        )  # fmt: skip
        if noise not in ("sde", "learned"):
            raise UsageError(f"the noise of a flow policy is 'sde' or 'learned', not {noise!r}")
        if min(level, low) <= 0 or high < low:
            raise UsageError("a flow policy explores by noise: level and low must be above 0, and high not below low")
        self.level, self.low, self.high = level, low, high
        inputs = len(self.encode.boxed) + 2 * len(FREQUENCIES)
        generator = torch.Generator().manual_seed(seed)
        self.spread = multilayer([inputs, 64, 64, self.size], 0.01, generator) if noise == "learned" else None

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        h, t = 1 / self.steps, step.to(x.dtype) / self.steps
        v = self.network(features, x, t)
        if self.spread is not None:
            lo, hi = 2 * math.log(self.low), 2 * math.log(self.high)
            bend = self.spread(torch.cat([features, clockwork(t)], -1)).tanh()
            return (x + h * v).clamp(-BOX, BOX), (0.5 * (lo + (hi - lo) * (bend + 1) / 2)).exp()
        left = (1 - t)[:, None]
        variance = self.level**2 * left / t.clamp(min=h)[:, None]
        pull = variance * h / (2 * left)
        return x * (1 - pull) + v * (h + pull * t[:, None]), (variance * h).sqrt().expand_as(x)

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        x = x + self.network(features, x, step.to(x.dtype) / self.steps) / self.steps
        return x if self.spread is None else x.clamp(-BOX, BOX)

    def jitter(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        drawn = super().jitter(shape, generator)
        return drawn if self.spread is None else drawn.clamp(-3, 3)

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        return (1 - time) * noise + time * action

    def lesson(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        return action - noise


class DiffusionPolicy(Denoiser):
    """Denoising diffusion: x = sqrt(abar) a + sqrt(1 - abar) e at `levels` levels of a squared-cosine schedule; the network learns e.

    The K steps go down the levels evenly, by DDIM with abar' at the level after: x0 = clip((x - sqrt(1 - abar) e) / sqrt(abar), -1, 1),
    e = (x - sqrt(abar) x0) / sqrt(1 - abar), mean = sqrt(abar') x0 + sqrt(1 - abar' - s^2) e, std = max(s, floor),
    s^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar'). eta = 1 is DDPM on these levels; greedy is eta = 0.
    `imitation`: denoising, minus the squared error of e, the mean over components.
    Source: Diffusion Policy, arXiv 2303.04137; DDIM, arXiv 2010.02502, eq. 12; schedule: arXiv 2102.09672; floor: DPPO, arXiv 2409.00588.
    """

    imitation = "denoising"
    kept: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[int] = (64, 64),
        steps: int = 10,
        tuned: int | None = None,
        levels: int = 100,
        eta: float = 1.0,
        floor: float = 0.1,
        over: Literal["mean", "sum"] = "mean",
        value: bool | Sequence[str] = True,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__(
            observation_space, action_space, hidden=hidden, steps=steps, tuned=tuned, over=over, value=value, normalize=normalize,
            seed=seed,
        )  # fmt: skip
        if levels < steps:
            raise UsageError(f"a diffusion policy cannot take {steps} steps down {levels} levels")
        if floor <= 0:
            raise UsageError(
                "a diffusion policy's last step is certain without a floor above 0, which has no log-probability"
            )
        self.levels, self.eta, self.floor = levels, eta, floor
        curve = np.cos((np.arange(levels + 1) / levels + 0.008) / 1.008 * math.pi / 2) ** 2
        alpha = 1 - np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        self.register_buffer("kept", torch.from_numpy(np.cumprod([1.0, *alpha])).float(), persistent=False)

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        return self.ddim(features, x, step, self.eta)

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        return self.ddim(features, x, step, 0.0)[0]

    def ddim(
        self,
        features: Float[Tensor, "draw dim"],
        x: Float[Tensor, "draw component"],
        step: Int[Tensor, " draw"],
        eta: float,
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        level, after = (((self.steps - k) * self.levels) // self.steps for k in (step, step + 1))
        abar, following = self.kept[level][:, None], self.kept[after][:, None]
        e = self.network(features, x, 1 - level.to(x.dtype) / self.levels)
        x0 = ((x - (1 - abar).sqrt() * e) / abar.sqrt()).clamp(-BOX, BOX)
        e = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        variance = eta**2 * (1 - following) / (1 - abar) * (1 - abar / following)
        mean = following.sqrt() * x0 + (1 - following - variance).clamp(min=0).sqrt() * e
        return mean, variance.sqrt().clamp(min=self.floor).expand_as(x)

    def clock(self, time: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
        return (time * self.levels).floor() / self.levels

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        abar = self.kept[((1 - time) * self.levels).round().long()]
        return abar.sqrt() * action + (1 - abar).sqrt() * noise

    def lesson(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        return noise


def clockwork(time: Float[Tensor, " draw"]) -> Float[Tensor, "draw feature"]:
    """cos(pi f t) and sin(pi f t) for every frequency."""
    angle = math.pi * time[:, None] * torch.tensor(FREQUENCIES, dtype=time.dtype)
    return torch.cat([angle.cos(), angle.sin()], -1)


def pretrain(
    policy: MLPPolicy,
    data: tuple[Float[Tensor, "sample dim"], Float[Tensor, "sample component"]],
    steps: int,
    *,
    lr: float = 5e-3,
    batch: int = 128,
    seed: int = 0,
) -> list[float]:
    """Behaviour cloning of (encoded observations, actions as the policy stores them): `steps` Adam steps, the rate falling to 0,
    on the mean of what the policy calls `imitation`: the matching loss of a generative policy, the likelihood of a Gaussian one.
    Returns the losses."""
    obs, action = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        some = torch.randint(len(obs), (batch,), generator=generator)
        trace = policy.trace(obs[some], action[some], generator)
        error = -policy.evaluate(Trajectories(trace=trace), {policy.imitation})[policy.imitation].mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    if isinstance(policy, Denoiser):
        policy.hold()
    return losses
