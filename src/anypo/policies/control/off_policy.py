"""Policies of methods with separate value networks: squashed Gaussian, deterministic, Gaussian or categorical, mixture of experts,
and greedy in a Q-function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.networks import NetworkKind, Sizes
from anypo.networks.perceptrons import Ensemble
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals, Choice, Dirac, Gaussian, Mixture, Squashed
from anypo.policies.control.images import WIDTH, BehindImages, ImageFeatures, NetworkBehindImages
from anypo.policies.control.normalize import DatasetNorm
from anypo.policies.control.observations import Flat
from anypo.policies.control.spaces import choices, require_floats, to_space, without_mask
from anypo.policies.decisions import names_of
from anypo.ranges import Members, Width
from anypo.types import MASK, Trajectories
from anypo.views import Draw, Functional, Network, register_functionals, rng_key

LOG_STD = (-20.0, 2.0)
"""Bounds of the log standard deviation of squashed Gaussians (SAC, arXiv 1801.01290)."""


register_functionals(
    Functional("action", ("action",)),
    Functional("taken", ("action",)),
    Functional("luck"),
    Functional("q_vae", ("member",)),
)

LARGE = 128
"""Hidden width from which on bfloat16 products are faster where the hardware has them."""


class Actor(ActorCritic):
    """ReLU perceptron and the value networks that a method learns; weights as in PyTorch's linear layers.

    Trace: obs [N, T, D] as `Flat` stores them, action [N, T] or [N, T, A] in [-1, 1], next [N, T, D] the observation that followed.
    Images are read by convolutions, of which every network has its own.
    hidden: widths of every network; by default 256 and 256, and none of a Q-function of choices behind images. normalize: observations
    but for images are centred and scaled with the statistics that `standardize` computed (of a dataset); without it they pass unchanged.
    """

    distributed = frozenset({"logp"})
    others: Tensor | None
    """Columns of an observation beside its images; None without images."""
    box: ClassVar[bool | None] = True
    """Whether actions are numbers in a box (False: choices; None: either)."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[Width[int]] | None = None,
        normalize: bool = False,
        value: bool | Sequence[str] = False,
        networks: Mapping[str, Network] | None = None,
        seed: int = 0,
    ):
        from gymnasium import spaces

        super().__init__()
        if names_of(value):
            raise UsageError(
                "this policy has separate value networks; a method with a shared critic needs --policy mlp"
            )
        discrete = isinstance(action_space, spaces.Discrete)
        if discrete and self.box is True:
            raise UsageError(f"the policy {self.kind} needs numbers as actions (a Box), the task has {action_space}")
        if not discrete and self.box is False:
            raise UsageError(f"the policy {self.kind} needs choices as actions (Discrete), the task has {action_space}")
        if not discrete and not isinstance(action_space, spaces.Box):
            raise UsageError(f"the policy {self.kind} cannot act in the action space {action_space}")
        if not discrete:
            require_floats(action_space)
        self.action_space, self.scalar = action_space, discrete
        self.sizes = choices(action_space)
        self.encode = Flat(without_mask(observation_space, action_space))
        self.compact, images, others = self.encode.compact, self.encode.images, torch.from_numpy(self.encode.others)
        if hidden is None:
            hidden = () if images and self.box is False else (256, 256)
        self.large = min(hidden, default=0) >= LARGE
        self.width = 1 if discrete else spaces.flatdim(action_space)
        generator = torch.Generator().manual_seed(seed)

        def read(net: nn.Module) -> nn.Module:
            return BehindImages(ImageFeatures(images, others, generator), net) if images else net

        def behind_images(net: NetworkKind) -> nn.Module:
            return NetworkBehindImages(ImageFeatures(images, others, generator), net) if images else net

        inputs = WIDTH * len(images) + len(others)
        self.norm = DatasetNorm(len(others)) if normalize else None
        self.register_buffer("others", others if images else None, persistent=False)
        actor = self.body((inputs, *hidden), generator)
        self.actor = actor if isinstance(actor, nn.Identity) else read(actor)
        sizes = Sizes(inputs, self.width, self.sizes[0] if discrete else 0, hidden)
        self.carry(networks, sizes, generator, behind_images)

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Build the actor's network."""
        raise NotImplementedError

    def features(self, obs: Shaped[Tensor, "*decision stored"]) -> Float[Tensor, "*decision dim"]:
        if self.compact:
            obs = self.encode.expand(obs)
        if self.norm is None or self.others is None:
            return obs if self.norm is None else self.norm(obs).to(obs.dtype)
        return obs.index_copy(-1, self.others, self.norm(obs[..., self.others]).to(obs.dtype))

    def values(self, features: Tensor) -> None:
        return None

    def standardize(self, obs: Shaped[Tensor, "sample stored"]) -> None:
        """Centre and scale observations from now on by the statistics of these."""
        if self.norm is not None:
            obs = self.encode.expand(obs)
            self.norm.fit(obs if self.others is None else obs[..., self.others])

    def noise(self, b: Trajectories, draw: Draw, generator: torch.Generator) -> Tensor | None:
        """Draw the random numbers of proposed actions, [N, T, (count,) A]."""
        if draw.how == "mode" and not draw.noise:
            return None
        shape = (*b.shape, *(() if draw.count is None else (draw.count,)), self.width)
        if draw.how == "uniform":
            return 2 * torch.rand(shape, generator=generator) - 1
        return torch.randn(shape, generator=generator)

    def noise_shape(self, functional: str) -> tuple[int, ...] | None:
        """Return () for `luck`, which is one normal number, and what networks read."""
        return () if functional == "luck" else super().noise_shape(functional)

    def propose(self, b: Trajectories, draw: Draw, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Propose (action [N, T, (count,) A], log-probability [N, T, (count)]) for the observations of the batch."""
        if draw.how == "uniform":
            noise = self._need(noise, draw)
            return noise, torch.full_like(noise[..., 0], -math.log(2) * self.width)
        distribution = self.distribution(self.features(b.trace["obs"]), b.trace.get(MASK))
        return self.propose_from(distribution, draw, noise)

    def propose_from(self, distribution: Any, draw: Draw, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Propose actions of a distribution."""
        if draw.how == "mode":
            action = distribution.mode()
            if noise is not None:
                action = (action + (draw.noise * noise).clamp(-draw.clip, draw.clip)).clamp(-1, 1)
            return action, None
        if draw.count is not None:
            distribution = type(distribution)(distribution.mean.unsqueeze(-2), distribution.log_std.unsqueeze(-2))
        return distribution.at(self._need(noise, draw))

    @staticmethod
    def _need(noise: Tensor | None, draw: Draw) -> Tensor:
        if noise is None:
            raise ValueError(f"a proposal by {draw} needs noise")
        return noise

    def taken(self, b: Trajectories) -> Tensor:
        """Return the actions of the batch."""
        return b.trace["action"]

    def luck(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """Return the standard normal number of every decision by which a distributional critic samples its return."""
        return b.trace[rng_key("luck")]

    @torch.no_grad()
    def q_vae(self, b: Trajectories) -> Float[Tensor, "row step member"]:
        """Evaluate Q at the autoencoder's reconstruction of the batch's actions."""
        reconstruction = self.evaluate(b, {"vae"})["vae"]
        return self.evaluate(b.but(trace={**b.trace, "action": reconstruction}), {"q"})["q"]

    def env_action(self, action: Shaped[Tensor, "batch *action"]) -> Any:
        """Convert stored actions to the environment's."""
        return to_space(self.action_space, action)


class SquashedGaussian(Actor):
    """tanh-squashed Gaussian whose mean and deviation depend on the state. Source: SAC, arXiv 1812.05905."""

    kind = "squashed"

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        return Ensemble(1, (*widths, 2 * self.width), False, generator)

    def distribution(self, features: Tensor, mask: Bool[Tensor, "*decision choice"] | None) -> Any:
        mean, log_std = _flat(self.actor, features).chunk(2, -1)
        return Squashed(mean, log_std.clamp(*LOG_STD))


class Deterministic(Actor):
    """a = tanh(mean(s)). Source: DDPG, arXiv 1509.02971."""

    kind = "deterministic"

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        return Ensemble(1, (*widths, self.width), False, generator)

    def distribution(self, features: Tensor, mask: Bool[Tensor, "*decision choice"] | None) -> Any:
        return Dirac(_flat(self.actor, features).tanh())

    def propose_from(self, distribution: Any, draw: Draw, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if draw.how != "mode":
            raise UsageError("the method samples actions that differ, and a deterministic policy proposes one")
        return super().propose_from(distribution, draw, noise)


class GaussianActor(Actor):
    """N(tanh(mean(s)), std^2) with a deviation that does not depend on the state, at least exp(-5); a categorical for choices.

    Source: IQL, arXiv 2110.06169, appendix.
    """

    kind = "gaussian"
    box = None
    distributed = frozenset({"logp", "entropy"})

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        outputs = self.sizes[0] if self.sizes else self.width
        self.log_std = None if self.sizes else nn.Parameter(torch.zeros(outputs))
        return Ensemble(1, (*widths, outputs), False, generator)

    def distribution(self, features: Tensor, mask: Bool[Tensor, "*decision choice"] | None) -> Any:
        out = _flat(self.actor, features)
        if self.log_std is None:
            return Categoricals(out, self.sizes, mask)
        return Reparameterised(out.tanh(), self.log_std.clamp(-5, 2))

    def noise(self, b: Trajectories, draw: Draw, generator: torch.Generator) -> Tensor | None:
        if self.sizes and draw.how == "sample" and draw.count is None:
            return torch.rand((*b.shape, self.sizes[0]), generator=generator)
        return super().noise(b, draw, generator)

    def propose_from(self, distribution: Any, draw: Draw, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.sizes:
            return super().propose_from(distribution, draw, noise)
        if draw.count is not None or draw.live:
            raise UsageError("the method needs actions that are numbers (a Box), the task has choices")
        logps = distribution.logps[0]
        gumbel = 0 if noise is None else -(-noise.clamp_min(1e-20).log()).log()
        action = (logps + gumbel).argmax(-1)
        return action, logps.gather(-1, action.unsqueeze(-1)).squeeze(-1)


class Reparameterised(Gaussian):
    """A Gaussian with actions as a function of noise; the mode lies in [-1, 1], samples are clipped to it."""

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        action = self.mean + self.log_std.exp() * noise
        return action.clamp(-1, 1), self.logp(action)


class Experts(Actor):
    """A gate over `experts` squashed Gaussians, one of which is sampled. Source: PMOE, arXiv 2104.09122.

    Functional `routing`: the gate's probabilities [N, T, E]. A draw of `each` expert gives [N, T, E, A]; `sample` gives the
    action of a sampled expert and that expert's log-density.
    """

    kind = "experts"
    distributed = register_functionals(Functional("logp"), Functional("routing", ("expert",)))

    def __init__(self, *arguments: Any, experts: Members = 4, **options: Any):
        self.experts = experts
        super().__init__(*arguments, **options)

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        return Ensemble(1, (*widths, self.experts * (2 * self.width + 1)), False, generator)

    def distribution(self, features: Tensor, mask: Bool[Tensor, "*decision choice"] | None) -> Any:
        out = _flat(self.actor, features)
        gate, out = out[..., : self.experts], out[..., self.experts :]
        mean, log_std = out.reshape(*out.shape[:-1], self.experts, 2 * self.width).chunk(2, -1)
        return Mixture(gate.log_softmax(-1), Squashed(mean, log_std.clamp(*LOG_STD)))

    def evaluate(self, b: Trajectories, want: Any, **options: Any) -> dict[str, Tensor]:
        out = super().evaluate(b, set(want) - {"routing"}, **options)
        if "routing" in want:
            out["routing"] = self.distribution(self.features(b.trace["obs"]), None).gate.exp()
        return out

    def noise(self, b: Trajectories, draw: Draw, generator: torch.Generator) -> Tensor | None:
        if draw.how not in ("sample", "each"):
            return super().noise(b, draw, generator)
        normal = torch.randn((*b.shape, self.experts, self.width), generator=generator)
        chance = torch.rand((*b.shape, self.experts, 1), generator=generator)
        return torch.cat([normal, chance], -1)

    def propose_from(self, distribution: Mixture, draw: Draw, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if draw.count is not None:
            raise UsageError("a mixture of experts proposes one action per expert, not several")
        if noise is None or draw.how == "mode":
            return super().propose_from(distribution, draw, noise)
        action, logp = distribution.parts.at(noise[..., :-1])
        if draw.how == "each":
            return action, logp
        gumbel = -(-noise[..., -1].clamp_min(1e-20).log()).log()
        which = (distribution.gate + gumbel).argmax(-1, keepdim=True)
        taken = action.gather(-2, which.unsqueeze(-1).expand(*which.shape, self.width)).squeeze(-2)
        return taken, logp.gather(-1, which).squeeze(-1)


class Greedy(Actor):
    """The action of the largest Q, the value network `q`. Source: DQN, Mnih et al. 2015."""

    kind = "greedy"
    box = False
    distributed = frozenset()

    def body(self, widths: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        return nn.Identity()

    def distribution(self, features: Tensor, mask: Bool[Tensor, "*decision choice"] | None) -> Any:
        if "q" not in self.networks:
            raise UsageError("the policy greedy acts by a value network `q`, and the method learns none")
        q = self.critics["q"](features).mean(1)
        return Choice(q if mask is None else torch.where(mask, q, -torch.inf))


def _flat(net: nn.Module, features: Float[Tensor, "... dim"]) -> Float[Tensor, "... output"]:
    """Return the output of an ensemble of one, for features with any number of leading dimensions."""
    return net(features.reshape(-1, features.shape[-1])).reshape(*features.shape[:-1], -1)
