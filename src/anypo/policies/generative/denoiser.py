"""The base class of flow and diffusion policies: a network that denoises an action in steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.kernels.mlp import build_mlp
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.decisions import Decisions, refuse_text_views, valid_mask
from anypo.policies.weights import snapshot, swap_params
from anypo.ranges import Count, Range, Width
from anypo.rng import BatchRng, Rng
from anypo.types import Trajectories
from anypo.views import Functional, Network, register_functionals

FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The frequencies f of the time features cos(pi f t), sin(pi f t)."""


BOX = 1.0
"""The environment's bounds in the scale in which the policy stores actions."""


class Denoiser(MLPPolicy):
    """x_0 ~ N(0, I), x_{k+1} ~ N(mean(x_k, k, o), std(x_k, k, o)^2) for k = 0..K-1; the action is x_K. K = `steps`.

    Every step is one decision: its logp is log N(x_{k+1}; mean, std) and its entropy that of the Gaussian, both the mean (or
    the `sum`, the density itself) over the components of the action, in nats. The start x_0 follows no parameter and is no
    decision. With `tuned`, only so many last steps are; the others are taken by a frozen copy of the network.
    Greedy actions start from noise too, and then use the subclass's deterministic sampler.
    All decisions of one action share the value V(o), a tanh network on the observation as in `MLPPolicy`; so are actions, their
    scale and the normalization of observations.

    Beside logp and entropy `evaluate` gives, per decision: score_norm, |d logp / d mean|^2 of the density; step_mean [N, T, A],
    step_std (root mean square over components) and step_width (1/K) of the transition; logp_noise, log N(x_0; 0, 1) at the
    first step and 0 at the others; guess [N, T, A], the network's output at the decision's draw (time, noise) for the final
    action; noise_share, 1 - that time; and under the name in `imitation` minus the mean squared error of the guess.
    `trace` gives the trace of an expert's action: the forward process through one noise, so demonstrations have logps too.

    Trace, per decision: obs, latent x_k, next x_{k+1}, step k, action x_K, and the draw: time in (0, 1), the k-th out of
    (k/K, (k+1)/K), and noise.
    """

    implicit = True
    offers = ("obs", "action")
    base_functionals = register_functionals(
        *map(Functional, ("logp", "entropy", "score_norm", "logp_noise")),
        *(Functional(name, ("action",)) for name in ("step_mean", "guess")),
        *(Functional(name, positive=True) for name in ("step_std", "step_width", "noise_share")),
    )

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[Width[int]] = (64, 64),
        steps: Annotated[int, Range(least=1, most=1000)] = 10,
        tuned: Count[int] | None = None,
        over: Literal["mean", "sum"] = "mean",
        value: bool | Sequence[str] = True,
        networks: Mapping[str, Network] | None = None,
        normalize: bool = True,
        seed: int = 0,
    ):
        options: dict[str, Any] = {"value": value, "networks": networks, "normalize": normalize, "seed": seed}
        super().__init__(observation_space, action_space, hidden=hidden, **options)
        if self.log_std is None:
            raise UsageError(f"the policy {self.kind} needs numbers as actions (a Box), the task has {action_space}")
        if steps < 1:
            raise UsageError(f"a generative policy needs at least one step, not {steps}")
        if tuned is not None and not 1 <= tuned <= steps:
            raise UsageError(f"of {steps} steps at least one and at most all can be tuned, not {tuned}")
        self.steps, self.over = steps, over
        self.frozen_steps = 0 if tuned is None else steps - tuned
        self.size = len(self.log_std)
        self.log_std = None
        width = self.inputs + self.size + 2 * len(FREQUENCIES)
        # without saturation: near the action the velocity and the noise are steep functions of x
        self.actor = build_mlp([width, *hidden, self.size], 0.01, torch.Generator().manual_seed(seed), nn.ReLU)

        self.freeze_base()

    def freeze_base(self) -> None:
        """Copy the network for the steps that are not tuned; behaviour cloning does this at its end."""
        self.base = snapshot(self.actor)

    @property
    def functionals(self) -> frozenset[str]:
        outputs = self.critics.outputs if self.networks else ()
        return frozenset({*self.base_functionals, self.imitation, *self.heads, *outputs})

    act_fn = None  # pyright: ignore[reportAssignmentType] - a decision takes several passes: it is not compiled with the task
    compile_rollouts = None  # pyright: ignore[reportAssignmentType]

    # ---------------------------------------------------------------- to be defined by a subclass

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        """Return mean and standard deviation of x_{k+1}."""
        raise NotImplementedError

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        """Return x_{k+1} without noise."""
        raise NotImplementedError

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        """Mix action and noise by the forward process: noise alone at time 0, the action alone at time 1."""
        raise NotImplementedError

    def regression_target(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        """Return the target of the network's output on the blend."""
        raise NotImplementedError

    def training_time(self, time: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
        """Map uniform times in (0, 1) to those at which the network is trained."""
        return time

    # ---------------------------------------------------------------- sampling and evaluation

    def distribution(self, features: Tensor, mask: Tensor | None) -> Any:
        raise UsageError("the actions of a generative policy have no closed-form distribution")

    def network(
        self,
        features: Float[Tensor, "draw dim"],
        x: Float[Tensor, "draw component"],
        time: Float[Tensor, " draw"],
    ) -> Float[Tensor, "draw component"]:
        return self.actor(torch.cat([features, x, time_embedding(time)], -1))

    @torch.no_grad()
    def act(
        self,
        obs: Shaped[Tensor, "batch stored"],
        rng: Rng,
        *,
        greedy: bool = False,
        action_mask: Tensor | None = None,
        random: float = 0.0,
        noise: float = 0.0,
        valued: bool = True,
    ) -> Decisions:
        """Run the chain for a batch of encoded observations."""
        if random or noise:
            raise UsageError(f"the policy {self.kind} explores by its own noise, not by random actions")
        features, n, shape = self.features(obs), len(obs), (len(obs), self.steps, self.size)
        x = rng.randn(self.size)
        noises = torch.zeros(shape) if greedy else self.chain_noise(rng)
        chain, logps = [x], []
        for k in range(self.steps):
            step = torch.full((n,), k)
            with swap_params(self.actor, self.base) if k < self.frozen_steps else nullcontext():
                mean, std = self.transition(features, x, step)
                x = self.greedy(features, x, step) if greedy else mean + std * noises[:, k]
            chain.append(x)
            logps.append(self.density(x, mean, std))
        values = self.values(features) if valued else None
        trace = self.draw_times(obs, x, rng) | {
            "latent": torch.stack(chain[:-1], 1),
            "next": torch.stack(chain[1:], 1),
        }
        logp, trace = (
            torch.stack(logps, 1)[:, self.frozen_steps :],
            {k: t[:, self.frozen_steps :] for k, t in trace.items()},
        )
        return Decisions(x, logp, None if values is None else values[:, 0], trace)

    def chain_noise(self, rng: Rng) -> Tensor:
        """Draw the standard normal numbers of a chain."""
        return rng.randn(self.steps, self.size)

    def density(self, x: Float[Tensor, "draw component"], mean: Tensor, std: Tensor) -> Float[Tensor, " draw"]:
        """Return log N(x; mean, std^2), its mean or sum over components by `over`."""
        return self.reduce(-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi))

    def reduce(self, x: Float[Tensor, "draw component"]) -> Float[Tensor, " draw"]:
        """Average or sum over the components of the action."""
        return x.mean(-1) if self.over == "mean" else x.sum(-1)

    def draw_times(
        self, obs: Shaped[Tensor, "batch stored"], action: Float[Tensor, "batch component"], rng: Rng
    ) -> dict[str, Tensor]:
        """Draw one (time, noise) per step for the matching loss of an action, stratified over the steps."""
        shape = len(obs), self.steps
        step = torch.arange(self.steps).expand(shape)
        return {
            "obs": obs[:, None].expand(*shape, -1),
            "action": action[:, None].expand(*shape, -1),
            "step": step,
            "time": (step + rng.rand(self.steps)) / self.steps,
            "noise": rng.randn(self.steps, self.size),
        }

    def trace(
        self, obs: Shaped[Tensor, "batch stored"], action: Float[Tensor, "batch component"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        draws = self.draw_times(obs, action, BatchRng(generator, len(obs)))
        noise = torch.randn(len(obs), 1, self.size, generator=generator)
        times = torch.linspace(0, 1, self.steps + 1)[:, None].expand(len(obs), -1, 1)
        chain = self.blend(action[:, None].expand(-1, self.steps + 1, -1), noise.expand(-1, self.steps + 1, -1), times)
        return draws | {"latent": chain[:, :-1], "next": chain[:, 1:]}

    def evaluate(
        self,
        b: Trajectories,
        want: Collection[str],
        *,
        layer: int | None = None,
        temperature: float | None = None,
        frozen: bool = False,
    ) -> dict[str, Float[Tensor, "row step *event"]]:
        refuse_text_views(layer, temperature)
        if missing := set(want) - self.functionals:
            raise UsageError(f"the policy {self.kind} cannot give {min(missing)!r}")
        valid = valid_mask(b)
        at = {name: x[valid] for name, x in b.trace.items()}
        features, out = self.features(at["obs"]), {}
        if {"logp", "entropy", "score_norm", "step_mean", "step_std"} & set(want):
            mean, std = self.transition(features, at["latent"], at["step"])
            out |= {
                "logp": self.density(at["next"], mean, std),
                "entropy": self.reduce(std.log() + 0.5 * math.log(2 * math.pi * math.e)),
                "score_norm": ((at["next"] - mean) / std.square()).square().sum(-1),
                "step_mean": mean,
                "step_std": std.square().mean(-1).sqrt(),
            }
        if {"guess", self.imitation} & set(want):
            time = self.training_time(at["time"])
            blend = self.blend(at["action"], at["noise"], time[:, None])
            guess = self.network(features, blend, time)
            error = guess - self.regression_target(at["action"], at["noise"])
            out |= {"guess": guess, self.imitation: -error.square().mean(-1)}
        if "logp_noise" in want:
            start = self.density(at["latent"], torch.zeros(()), torch.ones(()))
            out["logp_noise"] = torch.where(at["step"] == 0, start, 0.0)
        if "noise_share" in want:
            out["noise_share"] = 1 - self.training_time(at["time"])
        if "step_width" in want:
            out["step_width"] = torch.full((len(features),), 1 / self.steps, dtype=features.dtype)
        if set(self.heads) & set(want) and (values := self.values(features)) is not None:
            out |= {name: values[:, k] for k, name in enumerate(self.heads)}
        if self.networks:
            out |= self.critics.evaluate(want, lambda key: features if key == "obs" else at.get(key), frozen)
        where = valid.nonzero(as_tuple=True)
        return {
            name: x.new_zeros(*valid.shape, *x.shape[1:]).index_put(where, x) for name, x in out.items() if name in want
        }


def time_embedding(time: Float[Tensor, " draw"]) -> Float[Tensor, "draw feature"]:
    """[cos(pi f t), sin(pi f t)] for every frequency f."""
    angle = math.pi * time[:, None] * torch.tensor(FREQUENCIES, dtype=time.dtype)
    return torch.cat([angle.cos(), angle.sin()], -1)
