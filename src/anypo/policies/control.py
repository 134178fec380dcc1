"""Actor-critic multilayer perceptrons for control: categorical, multi-categorical and Gaussian actions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor, nn

from anypo.errors import RunError, UsageError
from anypo.policies.normalize import RunningNorm
from anypo.types import Trajectories

MASK = "action_mask"
"""The key of an observation dict, of `info` and of the trace that says which discrete actions are allowed."""


@dataclass(slots=True)
class Decisions:
    """What `act` decided for B observations: action [B] or [B, A], its log-probability (nats), the state's value."""

    action: Shaped[Tensor, "batch *action"]
    logp: Float[Tensor, " batch"]
    value: Float[Tensor, " batch"] | None


class Categoricals:
    """Independent categoricals over `sizes` choices each, from unnormalised logits [M, sum(sizes)].

    A choice the mask forbids has probability exactly 0 and adds nothing to the entropy.
    """

    def __init__(
        self,
        logits: Float[Tensor, "decision choice"],
        sizes: Sequence[int],
        mask: Bool[Tensor, "decision choice"] | None = None,
    ):
        if mask is not None:
            closed = ~mask.any(-1)
            if closed.any():
                raise RunError(f"{MASK} forbids every action in row {int(closed.nonzero()[0])}; allow at least one")
            logits = torch.where(mask, logits, -torch.inf)
        self.logps = [x.log_softmax(-1) for x in logits.split(list(sizes), -1)]

    def sample(self, generator: torch.Generator) -> Int[Tensor, "decision component"]:
        return torch.cat([torch.multinomial(x.exp(), 1, generator=generator) for x in self.logps], -1)

    def mode(self) -> Int[Tensor, "decision component"]:
        return torch.stack([x.argmax(-1) for x in self.logps], -1)

    def logp(self, action: Int[Tensor, "decision component"]) -> Float[Tensor, " decision"]:
        taken = [x.gather(-1, a) for x, a in zip(self.logps, action.split(1, -1), strict=True)]
        return torch.cat(taken, -1).sum(-1)

    def entropy(self) -> Float[Tensor, " decision"]:
        each = [-(x.exp() * x.masked_fill(x == -torch.inf, 0)).sum(-1) for x in self.logps]
        return torch.stack(each, -1).sum(-1)


class Gaussian:
    """Diagonal Gaussian with mean [M, A] and state-independent log standard deviation [A]."""

    def __init__(self, mean: Float[Tensor, "decision component"], log_std: Float[Tensor, " component"]):
        self.mean, self.log_std = mean, log_std

    def sample(self, generator: torch.Generator) -> Float[Tensor, "decision component"]:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Float[Tensor, "decision component"]:
        return self.mean

    def logp(self, action: Float[Tensor, "decision component"]) -> Float[Tensor, " decision"]:
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, " decision"]:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(self.mean))


class Flat:
    """An observation space as a float32 vector: numbers as they are, choices one-hot, nested parts one after the other.

    Dict entries stand in alphabetical order of their names and are looked up by name; tuples keep their order.
    `boxed` marks the entries that are numbers rather than one-hot choices.
    """

    def __init__(self, space: Any):
        from gymnasium.spaces import Box, flatdim

        self.space = _sorted(space)
        self.boxed = np.concatenate([np.full(flatdim(s), isinstance(s, Box)) for s in _leaves(self.space)])
        self.plain = isinstance(space, Box)

    def __call__(self, observation: Any) -> Float32[np.ndarray, " dim"]:
        if self.plain:
            return np.array(observation, np.float32).ravel()
        from gymnasium.spaces import flatten

        return np.asarray(flatten(self.space, observation), np.float32)


def _sorted(space: Any) -> Any:
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

    if isinstance(space, Dict):
        return Dict([(name, _sorted(space[name])) for name in sorted(space)])
    if isinstance(space, Tuple):
        return Tuple([_sorted(s) for s in space])
    if isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        return space
    raise UsageError(
        f"the observation space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, "
        "or a Dict or Tuple of them"
    )


def _leaves(space: Any) -> list[Any]:
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


class ActorCritic(nn.Module):
    """What policies with an explicit action distribution share; a subclass says how observations become distributions.

    Trace: obs [N, T, ...], action [N, T] or [N, T, A], and action_mask [N, T, choices] where actions were constrained.
    """

    exact = True
    independent = True
    scalar = True
    """A decision is one number, stored [N, T] rather than [N, T, 1]."""

    def features(self, obs: Tensor) -> Tensor:
        """Encoded observations as the networks read them."""
        return obs

    def distribution(self, features: Tensor, mask: Bool[Tensor, "decision choice"] | None) -> Categoricals | Gaussian:
        raise NotImplementedError

    def values(self, features: Tensor) -> Float[Tensor, " decision"] | None:
        """V, or None without a value head."""
        raise NotImplementedError

    @torch.no_grad()
    def act(
        self,
        obs: Shaped[Tensor, "batch ..."],
        generator: torch.Generator,
        *,
        greedy: bool = False,
        action_mask: Bool[Tensor, "batch choice"] | None = None,
    ) -> Decisions:
        """Decide for a batch of encoded observations: a sample, or the mode when greedy."""
        features = self.features(obs)
        distribution = self.distribution(features, action_mask)
        action = distribution.mode() if greedy else distribution.sample(generator)
        logp = distribution.logp(action)
        return Decisions(action.squeeze(-1) if self.scalar else action, logp, self.values(features))

    @torch.no_grad()
    def value_of(self, obs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, " batch"] | None:
        """V of encoded observations; None without a value head."""
        return self.values(self.features(obs))

    def evaluate(self, b: Trajectories, want: Collection[str]) -> dict[str, Float[Tensor, "row step"]]:
        """logp, entropy (nats) and value of the decisions in the trace, differentiable; 0 where the mask is off."""
        valid = chosen(b)
        features = self.features(b.trace["obs"][valid])
        found = {}
        if "logp" in want or "entropy" in want:
            mask = b.trace[MASK][valid] if MASK in b.trace else None
            distribution = self.distribution(features, mask)
            if "logp" in want:
                action = b.trace["action"][valid]
                found["logp"] = distribution.logp(action.unsqueeze(-1) if self.scalar else action)
            if "entropy" in want:
                found["entropy"] = distribution.entropy()
        if "value" in want:
            found["value"] = self.values(features)
            if found["value"] is None:
                raise UsageError("the method reads `value`, but the policy has no value head; build it with value=True")
        return {name: x.new_zeros(valid.shape).masked_scatter(valid, x) for name, x in found.items()}

    def observe(self, b: Trajectories) -> None:
        """Nothing to learn from a batch, unless a subclass keeps input statistics."""


def chosen(b: Trajectories) -> Bool[Tensor, "row step"]:
    """Which decisions of the batch's trace count."""
    return b.valid if b.mask is not None else torch.ones(b.trace["obs"].shape[:2], dtype=torch.bool)


class MLPPolicy(ActorCritic):
    """Separate tanh networks for actor and critic, with running observation normalization.

    Discrete and MultiDiscrete actions are (independent) categoricals; Box actions a diagonal Gaussian whose log
    standard deviation does not depend on the state. What is stored and evaluated is the Gaussian's own sample; the
    environment gets it with [-1, 1] mapped onto its bounds, then clipped (only clipped where a bound is missing).
    Weights are orthogonal with gain sqrt(2), 0.01 for the actor's output and 1 for the critic's (Huang et al. 2022,
    "The 37 implementation details of PPO"). An `action_mask` in a Dict observation constrains Discrete actions and is
    no feature. One-hot features are not normalized.

    Trace: obs [N, T, D] float32 before normalization, action [N, T] or [N, T, A], action_mask [N, T, choices] if any.
    """

    boxed: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[int] = (64, 64),
        value: bool = True,
        normalize: bool = True,
        seed: int = 0,
    ):
        from gymnasium import spaces

        super().__init__()
        self.action_space = action_space
        self.scalar = isinstance(action_space, spaces.Discrete)
        self.sizes: list[int] = []
        outputs = 0
        if isinstance(action_space, spaces.Discrete):
            outputs = int(action_space.n)
            self.sizes = [outputs]
            if isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces:
                parts = {name: s for name, s in observation_space.items() if name != MASK}
                observation_space = spaces.Dict(parts)
        elif isinstance(action_space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in action_space.nvec.ravel()]
            outputs = sum(self.sizes)
        elif isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
            outputs = spaces.flatdim(action_space)
        else:
            raise UsageError(
                f"the action space {action_space} is not supported; use Discrete, MultiDiscrete or a Box of floats"
            )
        self.encode = Flat(observation_space)
        dim = len(self.encode.boxed)
        generator = torch.Generator().manual_seed(seed)
        self.actor = _mlp([dim, *hidden, outputs], 0.01, generator)
        self.log_std = None if self.sizes else nn.Parameter(torch.zeros(outputs))
        self.critic = _mlp([dim, *hidden, 1], 1.0, generator) if value else None
        self.norm = RunningNorm(dim) if normalize else None
        self.register_buffer("boxed", torch.from_numpy(self.encode.boxed), persistent=False)

    def features(self, obs: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision dim"]:
        if self.norm is not None:
            obs = torch.where(self.boxed, self.norm(obs), obs)
        return obs.to(next(self.actor.parameters()).dtype)

    def distribution(
        self, features: Float[Tensor, "decision dim"], mask: Bool[Tensor, "decision choice"] | None
    ) -> Categoricals | Gaussian:
        out = self.actor(features)
        if self.log_std is not None:
            return Gaussian(out, self.log_std)
        return Categoricals(out, self.sizes, mask)

    def values(self, features: Float[Tensor, "decision dim"]) -> Float[Tensor, " decision"] | None:
        return None if self.critic is None else self.critic(features).squeeze(-1)

    def observe(self, b: Trajectories) -> None:
        """Learn the observation statistics from the batch's valid decisions."""
        if self.norm is not None:
            self.norm.update(b.trace["obs"][chosen(b)])

    def env_action(self, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
        """Stored decisions as the environment accepts them."""
        space, taken = self.action_space, action.numpy()
        if self.sizes:
            return taken.reshape(-1, *space.shape) + space.start
        taken = taken.reshape(-1, *space.shape)
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
        mapped = np.where(bounded, low + (taken + 1) / 2 * (high - low), taken)
        return np.clip(mapped, space.low, space.high).astype(space.dtype)


def _mlp(widths: Sequence[int], gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with tanh between them; drawn from `generator`, the last one with the given gain."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        last = i == len(widths) - 2
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)
