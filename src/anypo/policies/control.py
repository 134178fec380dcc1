"""Actor-critic multilayer perceptrons for control: categorical, multi-categorical and Gaussian actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor, nn

from anypo.errors import RunError, UsageError
from anypo.machine import Native
from anypo.policies.anchor import applied, moving
from anypo.policies.curvature import Moments, products
from anypo.policies.normalize import RunningNorm, scaled
from anypo.policies.perceptron import multilayer
from anypo.stages import Network
from anypo.types import Trajectories, whole

MASK = "action_mask"
"""The key of an observation dict, of `info` and of the trace that says which discrete actions are allowed."""


@dataclass(slots=True)
class Decisions:
    """What `act` decided for B observations: action [B] or [B, A], its log-probability (nats), the state's value.

    An action that K decisions in turn have led to has logp [B, K], and `trace` holds [B, K, ...] to evaluate each again.
    """

    action: Shaped[Tensor, "batch *action"]
    logp: Float[Tensor, "batch *draw"]
    value: Float[Tensor, " batch"] | None
    trace: dict[str, Tensor] | None = None

    def rows(
        self, obs: Shaped[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch draw"], Float[Tensor, "batch draw"] | None, dict[str, Tensor]]:
        """logp, value and trace of the decisions in turn, K = 1 of them where the action was one decision."""
        logp = self.logp if self.logp.ndim == 2 else self.logp[:, None]
        value = None if self.value is None else self.value[:, None].expand_as(logp)
        if self.trace is None:
            return logp, value, {"obs": obs[:, None], "action": self.action[:, None]}
        return logp, value, self.trace


class Categoricals:
    """Independent categoricals over `sizes` choices each, from unnormalised logits [M, sum(sizes)].

    A choice the mask forbids has probability exactly 0 and adds nothing to the entropy.
    """

    def __init__(
        self,
        logits: Float[Tensor, "*decision choice"],
        sizes: Sequence[int],
        mask: Bool[Tensor, "*decision choice"] | None = None,
    ):
        if mask is not None:
            closed = ~mask.any(-1)
            if closed.any():
                raise RunError(f"{MASK} forbids every action in row {int(closed.nonzero()[0])}; allow at least one")
            logits = torch.where(mask, logits, -torch.inf)
        parts = (logits,) if len(sizes) == 1 else logits.split(list(sizes), -1)
        self.logps = [x.log_softmax(-1) for x in parts]

    def sample(self, generator: torch.Generator) -> Int[Tensor, "*decision component"]:
        """The choice whose exponential clock rings first, rates p: what torch.multinomial does, without its checks."""
        return self.picked(clocks(self.logps[0].shape[:-1], [x.shape[-1] for x in self.logps], generator))

    def picked(self, noise: Float[Tensor, "*decision choice"]) -> Int[Tensor, "*decision component"]:
        """The sample that standard exponential numbers lead to."""
        parts = (noise,) if len(self.logps) == 1 else noise.split([x.shape[-1] for x in self.logps], -1)
        rung = [(x.exp() / part).argmax(-1, keepdim=True) for x, part in zip(self.logps, parts, strict=True)]
        return _side_by_side(rung)

    def mode(self) -> Int[Tensor, "*decision component"]:
        return torch.stack([x.argmax(-1) for x in self.logps], -1)

    def logp(self, action: Int[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        if len(self.logps) == 1:
            return self.logps[0].gather(-1, action).squeeze(-1)
        taken = [x.gather(-1, a) for x, a in zip(self.logps, action.split(1, -1), strict=True)]
        return torch.cat(taken, -1).sum(-1)

    def score_norm(self, action: Int[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        """|d log p(action) / d logits|^2 = 1 - 2 p(a) + sum_v p(v)^2, summed over the components."""
        each = [
            1 - 2 * x.gather(-1, a).exp().squeeze(-1) + (2 * x).exp().sum(-1)
            for x, a in zip(self.logps, action.split(1, -1), strict=True)
        ]
        return torch.stack(each, -1).sum(-1)

    def entropy(self) -> Float[Tensor, "*decision"]:
        each = [-(x.exp() * x.masked_fill(x == -torch.inf, 0)).sum(-1) for x in self.logps]
        return torch.stack(each, -1).sum(-1)


def clocks(shape: Sequence[int], sizes: Sequence[int], generator: torch.Generator) -> Float[Tensor, "... choice"]:
    """Standard exponential numbers for every choice of every component."""
    return _side_by_side([torch.empty(*shape, size).exponential_(generator=generator) for size in sizes])


def _side_by_side(columns: list[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


class Gaussian:
    """Diagonal Gaussian with mean [M, A] and state-independent log standard deviation [A]."""

    def __init__(self, mean: Float[Tensor, "*decision component"], log_std: Float[Tensor, " component"]):
        self.mean, self.log_std = mean, log_std

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*decision component"]:
        return self.picked(torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype))

    def picked(self, noise: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision component"]:
        """The sample that standard normal numbers lead to."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Float[Tensor, "*decision component"]:
        return self.mean

    def logp(self, action: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def score_norm(self, action: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        """|d log p(action) / d mean|^2."""
        return ((action - self.mean) * torch.exp(-2 * self.log_std)).square().sum(-1)

    def entropy(self) -> Float[Tensor, "*decision"]:
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

    def rows(self, observations: Sequence[Any]) -> Float32[np.ndarray, "observation dim"]:
        """Several of them, one a row."""
        if self.plain:
            return np.array(observations, np.float32).reshape(len(observations), -1)
        return np.stack([self(observation) for observation in observations])


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
    heads: tuple[str, ...] = ()
    """Names of the value functions, in the order of `values`; the first one bootstraps."""
    networks: Mapping[str, Network] = {}
    """Value functions with networks of their own, which stand in `critics`."""
    critics: nn.ModuleDict
    distributed: frozenset[str] = frozenset({"logp", "entropy", "score_norm"})
    """What the action distribution gives."""
    implicit = False
    """Greedy actions begin with noise too: they are samples of what the policy has learned."""
    imitation: str = "logp"
    """The functional that behaviour cloning maximises on an expert's actions."""

    @property
    def functionals(self) -> frozenset[str]:
        own = [f"{name}{end}" for name in self.networks for end in ("", "_std", "_all", "_kl")]
        return self.distributed | {*self.heads, *own}

    encode: Any
    """An observation as the policy stores it."""

    def encoded(self, observations: Sequence[Any]) -> Shaped[np.ndarray, "observation ..."]:
        """Several observations, one a row."""
        if isinstance(self.encode, Flat):
            return self.encode.rows(observations)
        return np.stack([self.encode(observation) for observation in observations])

    def features(self, obs: Tensor) -> Tensor:
        """Encoded observations as the networks read them."""
        return obs

    def distribution(self, features: Tensor, mask: Bool[Tensor, "decision choice"] | None) -> Any:
        """What can be sampled, has a mode, and gives the log-probability of an action."""
        raise NotImplementedError

    def values(self, features: Tensor) -> Float[Tensor, "decision head"] | None:
        """What the value heads say, or None without one."""
        raise NotImplementedError

    def hidden(self, features: Tensor) -> Float[Tensor, "decision width"]:
        """What the last layer of the actor reads."""
        raise NotImplementedError

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        """The weights of the actor's last layer, and whether they stand as [width, choice]."""
        raise NotImplementedError

    def resting(self) -> AbstractContextManager[None]:
        """Inside, nothing the policy has learned moves, so that `act` may keep what depends on that alone."""
        return nullcontext()

    @torch.no_grad()
    def act(
        self,
        obs: Shaped[Tensor, "batch ..."],
        generator: torch.Generator,
        *,
        greedy: bool = False,
        action_mask: Bool[Tensor, "batch choice"] | None = None,
        random: float = 0.0,
        noise: float = 0.0,
        valued: bool = True,
    ) -> Decisions:
        """Decide for a batch of encoded observations: a sample, or the mode when greedy; see `Request` for the others.

        valued: with the states' values. `value_of` gives them for all steps of a rollout at once, which costs less.
        """
        action, logp = self.decide(obs, generator, greedy, action_mask)
        value = self.value_of(obs) if valued else None
        if random or noise:
            action = self.explored(action, generator, random, noise)
        return Decisions(action.squeeze(-1) if self.scalar else action, logp, value)

    def decide(
        self,
        obs: Shaped[Tensor, "batch ..."],
        generator: torch.Generator,
        greedy: bool,
        mask: Bool[Tensor, "batch choice"] | None,
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        """Actions and their log-probabilities (nats)."""
        distribution = self.distribution(self.features(obs), mask)
        action = distribution.mode() if greedy else distribution.sample(generator)
        return action, distribution.logp(action)

    def explored(self, action: Tensor, generator: torch.Generator, random: float, noise: float) -> Tensor:
        """The actions with Gaussian noise added, and replaced by uniform ones with probability `random`."""
        if noise:
            action = (action + noise * torch.randn(action.shape, generator=generator)).clamp(-1, 1)
        if random:
            chance = torch.rand(len(action), generator=generator).reshape(-1, *[1] * (action.ndim - 1))
            action = torch.where(chance < random, self.anything(action, generator), action)
        return action

    def anything(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform actions of the same shape: in [-1, 1], or any choice."""
        uniform = torch.rand(action.shape, generator=generator)
        sizes: list[int] = getattr(self, "sizes", [])
        return (uniform * torch.tensor(sizes)).long() if sizes else 2 * uniform - 1

    @torch.no_grad()
    def value_of(self, obs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, " batch"] | None:
        """V of encoded observations; None without a value head."""
        values = self.values(self.features(obs))
        return None if values is None else values[:, 0]

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None, frozen: bool = False
    ) -> dict[str, Float[Tensor, "row step ..."]]:
        """logp, entropy (nats), squared score norm and values of the decisions in the trace, differentiable; 0 where the
        mask is off. frozen: value networks are constants, so that the gradient runs to the actions alone."""
        if layer is not None:
            raise UsageError("the method reads an inner layer of the policy, which only language models offer")
        if missing := set(want) - self.functionals:
            raise UsageError(f"the method reads `{min(missing)}`, but the policy has no value head of that name")
        valid = chosen(b)
        every = b.mask is None or whole(valid) or bool(valid.all())
        kept = partial(flat, valid=None if every else valid)
        features = self.features(kept(b.trace["obs"]))
        found = {}
        if self.distributed & set(want):
            distribution = self.distribution(features, kept(b.trace[MASK]) if MASK in b.trace else None)
            action = kept(b.trace["action"])
            action = action.unsqueeze(-1) if self.scalar else action
            if "logp" in want:
                found["logp"] = distribution.logp(action)
            if "entropy" in want:
                found["entropy"] = distribution.entropy()
            if "score_norm" in want:
                found["score_norm"] = distribution.score_norm(action)
        if set(self.heads) & set(want):
            values = self.values(features)
            assert values is not None
            found |= {name: values[:, k] for k, name in enumerate(self.heads) if name in want}
        for name, spec in self.networks.items():
            if wanted := {name, f"{name}_std", f"{name}_all", f"{name}_kl"} & set(want):
                latent = kept(b.trace["latent"]) if "latent" in b.trace else None
                found |= self.judge(name, spec, wanted, features, kept(b.trace["action"]), frozen, latent)
        return {name: placed(x, valid) for name, x in found.items()}

    def judge(
        self,
        name: str,
        spec: Network,
        want: set[str],
        features: Tensor,
        action: Tensor,
        frozen: bool,
        latent: Tensor | None,
    ) -> dict[str, Float[Tensor, "decision ..."]]:
        """What a value network says: NAME [M, member] (or [M, draw, member]), NAME_std its deviations, NAME_all [M, choice,
        member] of every discrete action; of an autoencoder NAME [M, A], the action as it comes out, and NAME_kl."""
        net = self.critics[name]
        if spec.of == "autoencoder":
            made, kl = net(features, action, latent)
            return {n: x for n, x in ((name, made), (f"{name}_kl", kl)) if n in want}
        sizes: list[int] = getattr(self, "sizes", [])
        if spec.of == "state" or sizes:
            out = net(features, frozen=frozen)
            if spec.of == "state":
                return {name: out[:, 0, 0] if spec.ensemble == 1 else out[..., 0]}
            every = out.transpose(1, 2)
            taken = action.reshape(-1, 1, 1).expand(-1, 1, spec.ensemble)
            found = {f"{name}_all": every, name: every.gather(1, taken).squeeze(1)}
            return {n: x for n, x in found.items() if n in want}
        if action.ndim > features.ndim:
            features = features.unsqueeze(1).expand(*action.shape[:-1], features.shape[-1])
        lead = action.shape[:-1]
        out = net(features.flatten(0, -2), action.flatten(0, -2), frozen)
        found = {name: out[..., 0].reshape(*lead, spec.ensemble)}
        if spec.spread:
            found[f"{name}_std"] = nn.functional.softplus(out[..., 1]).reshape(*lead, spec.ensemble)
        return {n: x for n, x in found.items() if n in want}

    @torch.no_grad()
    def step_products(self, b: Trajectories, moments: Moments | None) -> dict[str, Float[Tensor, "row step"]]:
        """`step_along` and `step_spread` of every decision (see `curvature.products`), for one categorical action."""
        valid = chosen(b)
        features = self.features(b.trace["obs"][valid])
        distribution = self.distribution(features, b.trace[MASK][valid] if MASK in b.trace else None)
        if not isinstance(distribution, Categoricals) or len(distribution.logps) > 1 or b.advantage is None:
            raise UsageError("the curvature of a step is known for policies with one categorical action only")
        found = products(
            self.hidden(features), distribution.logps[0], b.trace["action"][valid], b.advantage[valid], moments
        )
        return {name: placed(x, valid) for name, x in found.items()}

    @torch.no_grad()
    def progress(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """C_{t+1} - C_t, where C_t is the probability of going on to the right outcome after t decisions: the product of the
        probabilities of the right remaining decisions while all earlier ones were right, else 0. Needs `answer` and
        `answer_obs` in the trace, the right decisions and what is observed on the way."""
        if "answer" not in b.trace:
            raise UsageError("the method measures progress towards a known answer, and this task has none")
        right = b.but(trace={"obs": b.trace["answer_obs"], "action": b.trace["answer"]})
        logp = self.evaluate(right, {"logp"})["logp"]
        rest = logp.flip(1).cumsum(1).flip(1).exp()
        alive = torch.where(b.valid, b.trace["action"] == b.trace["answer"], True).cumprod(1)
        after = torch.cat([rest[:, 1:], torch.ones_like(rest[:, :1])], 1)
        before = torch.cat([torch.ones_like(alive[:, :1]), alive[:, :-1]], 1)
        return torch.where(b.valid, after * alive - rest * before, 0.0)

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """b with every feature of every observation set to 0 independently with probability `share`."""
        obs = b.trace["obs"]
        kept = torch.rand(obs.shape, generator=generator) >= share
        return b.but(trace={**b.trace, "obs": torch.where(kept, obs, torch.zeros_like(obs))})

    def trace(
        self, obs: Shaped[Tensor, "batch ..."], action: Shaped[Tensor, "batch *action"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The trace of actions taken elsewhere, by an expert for example; whatever has to be drawn comes from `generator`."""
        return {"obs": obs[:, None], "action": action[:, None]}

    def observe(self, b: Trajectories) -> None:
        """Nothing to learn from a batch, unless a subclass keeps input statistics."""


def names_of(value: bool | Sequence[str]) -> tuple[str, ...]:
    """Names of the value heads: one called `value` for True."""
    return (("value",) if value else ()) if isinstance(value, bool) else tuple(value)


def flat(x: Shaped[Tensor, "row step ..."], valid: Bool[Tensor, "row step"] | None) -> Shaped[Tensor, "decision ..."]:
    """The decisions that count (None: all), one after the other."""
    return x.flatten(0, 1) if valid is None else x[valid]


def placed(x: Float[Tensor, "decision ..."], valid: Bool[Tensor, "row step"]) -> Float[Tensor, "row step ..."]:
    """Values of the valid decisions, in order, at their places; 0 elsewhere."""
    if len(x) == valid.numel():
        return x.reshape(*valid.shape, *x.shape[1:])
    return x.new_zeros(*valid.shape, *x.shape[1:]).index_put((valid,), x)


def chosen(b: Trajectories) -> Bool[Tensor, "row step"]:
    """Which decisions of the batch's trace count."""
    return b.valid if b.mask is not None else torch.ones(b.trace["obs"].shape[:2], dtype=torch.bool)


class Settled(NamedTuple):
    """What an actor that rests keeps: its network as one function, and the statistics of its input."""

    actor: Callable[[Tensor], Tensor]
    statistics: tuple[Tensor, ...]


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
        value: bool | Sequence[str] = True,
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
        self.actor = multilayer([dim, *hidden, outputs], 0.01, generator)
        self.log_std = None if self.sizes else nn.Parameter(torch.zeros(outputs))
        self.heads = names_of(value)
        self.critic = multilayer([dim, *hidden, len(self.heads)], 1.0, generator) if self.heads else None
        self.norm = RunningNorm(dim) if normalize else None
        self.register_buffer("boxed", torch.from_numpy(self.encode.boxed), persistent=False)
        self.numeric = bool(self.encode.boxed.all())
        self.settled: Settled | None = None
        self.native: Native | None = None
        self.rested: list[Tensor] = []

    def to_machine_code(self) -> None:
        """From now on, rollouts decide by compiled code, which takes seconds to make."""
        self.native = Native(self.decided)

    def features(self, obs: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision dim"]:
        if self.norm is not None:
            found = self.norm.forward(obs) if self.settled is None else scaled(obs, *self.settled.statistics)
            obs = found if self.numeric else torch.where(self.boxed, found, obs)
        return obs.to(self.actor.dtype)

    @contextmanager
    def resting(self) -> Iterator[None]:
        if self.native is not None:
            self.rested = self.acting()
        else:
            statistics = () if self.norm is None else (self.norm.mean, self.norm.scale)
            self.settled = Settled(self.actor.settled(), statistics)
        try:
            yield
        finally:
            self.settled, self.rested = None, []

    def decide(
        self,
        obs: Float[Tensor, "batch dim"],
        generator: torch.Generator,
        greedy: bool,
        mask: Bool[Tensor, "batch choice"] | None,
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        if self.native is None or not self.rested or greedy or mask is not None:
            return super().decide(obs, generator, greedy, mask)
        action, logp = self.native(obs, self.luck(len(obs), generator), *self.rested)
        return action, logp

    def luck(self, n: int, generator: torch.Generator) -> Float[Tensor, "batch number"]:
        """The random numbers of n decisions."""
        if self.log_std is None:
            return clocks([n], self.sizes, generator)
        return torch.randn(n, len(self.log_std), generator=generator, dtype=self.log_std.dtype)

    def acting(self) -> list[Tensor]:
        """What decisions depend on."""
        return [tensor.detach() for name, tensor in moving(self).items() if not name.startswith("critic.")]

    def decided(
        self, obs: Float[Tensor, "batch dim"], luck: Float[Tensor, "batch number"], *acting: Tensor
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        """Actions and log-probabilities as a function of tensors alone."""
        live = moving(self)
        names = [name for name in live if not name.startswith("critic.")]
        with applied(self, live | dict(zip(names, acting, strict=True))):
            distribution = self.distribution(self.features(obs), None)
            action = distribution.picked(luck)
            return action, distribution.logp(action)

    def distribution(
        self, features: Float[Tensor, "decision dim"], mask: Bool[Tensor, "decision choice"] | None
    ) -> Categoricals | Gaussian:
        out = (self.actor.forward if self.settled is None else self.settled.actor)(features)
        if self.log_std is not None:
            return Gaussian(out, self.log_std)
        return Categoricals(out, self.sizes, mask)

    def values(self, features: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision head"] | None:
        return None if self.critic is None else self.critic.forward(features)

    def hidden(self, features: Float[Tensor, "decision dim"]) -> Float[Tensor, "decision width"]:
        return self.actor[:-1](features)

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        return cast(nn.Parameter, self.actor[-1].weight), False

    def observe(self, b: Trajectories) -> None:
        """Learn the observation statistics from the batch's valid decisions."""
        if self.norm is not None:
            self.norm.update(b.trace["obs"][chosen(b)])

    def env_action(self, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
        """Stored decisions as the environment accepts them."""
        return to_space(self.action_space, action)

    def from_env(self, action: Shaped[np.ndarray, "batch *shape"]) -> Shaped[Tensor, "batch *component"]:
        """The environment's actions as the policy stores them: the inverse of `env_action` inside the bounds."""
        return from_space(self.action_space, action)


def to_space(space: Any, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
    """Choices counted from the space's first; numbers with [-1, 1] mapped onto the bounds of a box and clipped to them."""
    taken = action.numpy().reshape(-1, *space.shape)
    if not hasattr(space, "low"):
        return taken + space.start
    low, high = _bounds(space)
    return np.clip(low + (taken + 1) / 2 * (high - low), space.low, space.high).astype(space.dtype)


def from_space(space: Any, action: Shaped[np.ndarray, "batch *shape"]) -> Shaped[Tensor, "batch *action"]:
    """The inverse of `to_space`: actions of a dataset as policies store them."""
    if not hasattr(space, "low"):
        taken = torch.as_tensor(np.asarray(action) - space.start, dtype=torch.long)
        return taken if space.shape == () else taken.reshape(len(taken), -1)
    low, high = _bounds(space)
    flat = 2 * (np.asarray(action, np.float64).reshape(-1, *space.shape) - low) / (high - low) - 1
    return torch.as_tensor(flat.reshape(len(flat), -1), dtype=torch.float32)


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """What -1 and 1 stand for: the bounds of a Box, and themselves where one is missing."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    return np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
