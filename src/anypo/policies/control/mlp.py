"""Perceptron policies for control."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from anypo.kernels.compiler import CompiledFn
from anypo.kernels.mlp import build_mlp
from anypo.networks import Sizes
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals, Gaussian, exponential_noise, require_choice
from anypo.policies.control.images import IMAGE_ROWS, ImageFeatures
from anypo.policies.control.normalize import RunningNorm, normalized_obs
from anypo.policies.control.observations import Flat
from anypo.policies.control.spaces import choices, from_space, require_floats, to_space, without_mask
from anypo.policies.decisions import names_of, valid_mask
from anypo.policies.weights import swap_params, trainable_state
from anypo.ranges import Width
from anypo.rng import Rng
from anypo.types import Trajectories
from anypo.views import Network

CRITICS = ("critic.", "critics.")
"""Beginnings of the names of what decisions do not depend on."""


class FoldedWeights(NamedTuple):
    """What is fixed for a rollout: the actor's network as one function, and the statistics of its input."""

    actor: Callable[[Tensor], Tensor]
    statistics: tuple[Tensor, ...]


class MLPPolicy(ActorCritic):
    """Separate tanh networks for actor and critic, with running observation normalization.

    Discrete and MultiDiscrete actions are (independent) categoricals, and so is each bit of MultiBinary ones, with two choices; Box
    actions a diagonal Gaussian whose log standard deviation does not depend on the state. The Gaussian's sample is stored and
    evaluated; the environment gets it with [-1, 1] mapped onto its bounds, then clipped (only clipped where a bound is missing).
    Weights are orthogonal with gain sqrt(2), 0.01 for the actor's output and 1 for the critic's (Huang et al. 2022,
    "The 37 implementation details of PPO"). An `action_mask` in a Dict observation constrains choices and is no feature.
    One-hot features are not normalized. Images are read by convolutions, whose features actor and critic share.

    hidden: widths of the networks' hidden layers; by default 64 and 64, and none behind images. normalize: centre and scale observations.

    Trace: obs [N, T, D] as `Flat` stores them, before normalization, action [N, T] or [N, T, A], action_mask [N, T, choices] if any.
    """

    kind = "mlp"
    boxed: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[Width[int]] | None = None,
        value: bool | Sequence[str] = True,
        networks: Mapping[str, Network] | None = None,
        normalize: bool = True,
        seed: int = 0,
    ):
        from gymnasium import spaces

        super().__init__()
        self.action_space = action_space
        self.scalar = isinstance(action_space, spaces.Discrete)
        self.sizes = choices(action_space)
        if not self.sizes:
            require_floats(action_space)
        outputs = sum(self.sizes) or spaces.flatdim(action_space)
        self.encode = Flat(without_mask(observation_space, action_space))
        images, others = self.encode.images, torch.from_numpy(self.encode.others)
        boxed = torch.from_numpy(self.encode.boxed)[others]
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = ImageFeatures(images, others, generator) if images else None
        self.inputs = len(boxed) if self.convolutions is None else self.convolutions.width
        if hidden is None:
            hidden = () if images else (64, 64)
        self.actor = build_mlp([self.inputs, *hidden, outputs], 0.01, generator)
        self.log_std = None if self.sizes else nn.Parameter(torch.zeros(outputs))
        self.heads = names_of(value)
        self.critic = build_mlp([self.inputs, *hidden, len(self.heads)], 1.0, generator) if self.heads else None
        if self.sizes and not self.scalar:  # several choices at a time are no input of a network
            self.offers = ("obs", "next")
        sizes = Sizes(self.inputs, outputs, self.sizes[0] if self.scalar else 0, hidden)
        self.carry(networks, sizes, generator)
        self.norm = RunningNorm(len(boxed)) if normalize else None
        self.register_buffer("boxed", boxed, persistent=False)
        self.compact = self.encode.compact
        self.numeric = bool(boxed.all())
        self.folded: FoldedWeights | None = None
        self.compiled: CompiledFn | None = None
        self.frozen_params: list[Tensor] = []

    def compile_rollouts(self) -> None:
        """Decide by compiled code in rollouts from now on; compiling takes seconds."""
        self.compiled = CompiledFn(self.act_fn)

    def features(self, obs: Shaped[Tensor, "decision stored"]) -> Float[Tensor, "decision dim"]:
        if self.convolutions is not None:
            return self.image_features(obs, self.convolutions)
        if self.compact:
            obs = self.encode.expand(obs)
        return self.normalized(obs).to(self.actor.dtype)

    def image_features(
        self, obs: Shaped[Tensor, "decision stored"], convolutions: ImageFeatures
    ) -> Float[Tensor, "decision dim"]:
        """Map observations with images to the networks' input."""
        traced = torch.compiler.is_compiling()  # exported: the number of rows is open
        if not traced and not torch.is_grad_enabled() and len(obs) > IMAGE_ROWS:
            return torch.cat([self.image_features(rows, convolutions) for rows in obs.split(IMAGE_ROWS)])
        obs = self.encode.expand(obs)
        others = self.normalized(obs[:, convolutions.others])
        return convolutions(obs.to(self.actor.dtype), others.to(self.actor.dtype))

    def normalized(self, obs: Float[Tensor, "decision number"]) -> Float[Tensor, "decision number"]:
        """Centre and scale the numbers beside images."""
        if self.norm is not None:
            normalized = self.norm.forward(obs) if self.folded is None else normalized_obs(obs, *self.folded.statistics)
            obs = normalized if self.numeric else torch.where(self.boxed, normalized, obs)
        return obs

    @contextmanager
    def frozen_for_rollout(self) -> Iterator[None]:
        if self.compiled is not None:
            self.frozen_params = self.act_params()
        else:
            statistics = () if self.norm is None else (self.norm.mean, self.norm.scale)
            self.folded = FoldedWeights(self.actor.fold_weights(), statistics)
        try:
            yield
        finally:
            self.folded, self.frozen_params = None, []

    def decide(
        self,
        obs: Shaped[Tensor, "batch stored"],
        rng: Rng,
        greedy: bool,
        mask: Bool[Tensor, "batch choice"] | None,
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        if self.compiled is None or not self.frozen_params or greedy or mask is not None:
            return super().decide(obs, rng, greedy, mask)
        action, logp = self.compiled(obs, self.action_noise(rng), *self.frozen_params)
        return action, logp

    def action_noise(self, rng: Rng) -> Float[Tensor, "batch number"]:
        """Draw the random numbers of a decision of every row."""
        if self.log_std is None:
            return exponential_noise(self.sizes, rng)
        return rng.randn(len(self.log_std)).to(self.log_std.dtype)

    def act_params(self) -> list[Tensor]:
        """Return the tensors that decisions depend on."""
        return [tensor.detach() for name, tensor in trainable_state(self).items() if not name.startswith(CRITICS)]

    def act_fn(
        self, obs: Shaped[Tensor, "batch stored"], noise: Float[Tensor, "batch number"], *params: Tensor
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        """Decide as a function of tensors alone: actions and log-probabilities of `action_noise` under `act_params`."""
        live = trainable_state(self)
        names = [name for name in live if not name.startswith(CRITICS)]
        with swap_params(self, live | dict(zip(names, params, strict=True))):
            distribution = self.distribution(self.features(obs), None)
            action = distribution.from_noise(noise)
            return action, distribution.logp(action)

    def distribution(
        self, features: Float[Tensor, "decision dim"], mask: Bool[Tensor, "decision choice"] | None
    ) -> Categoricals | Gaussian:
        out = (self.actor.forward if self.folded is None else self.folded.actor)(features)
        if self.log_std is not None:
            return Gaussian(out, self.log_std)
        if mask is not None:
            require_choice(mask, self.sizes)
        return Categoricals(out, self.sizes, mask)

    def values(self, features: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision head"] | None:
        return None if self.critic is None else self.critic.forward(features)

    def hidden(self, features: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision width"]:
        return self.actor[:-1](features)

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        return cast(nn.Parameter, self.actor[-1].weight), False

    def observe(self, b: Trajectories) -> None:
        """Update the observation statistics with the batch's valid decisions."""
        if self.norm is None or not len(self.boxed):
            return
        obs = self.encode.expand(b.trace["obs"][valid_mask(b)])
        self.norm.update(obs if self.convolutions is None else obs[:, self.convolutions.others])

    def env_action(self, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
        """Convert stored actions to the environment's."""
        return to_space(self.action_space, action)

    def from_env(self, action: Shaped[np.ndarray, "batch *shape"]) -> Shaped[Tensor, "batch *component"]:
        """Convert the environment's actions to those the policy stores: the inverse of `env_action` inside the bounds."""
        return from_space(self.action_space, action)
