"""What every policy for control shares: acting, exploring, evaluating."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.spaces import Flat
from anypo.policies.curvature import Moments, step_products
from anypo.policies.decisions import MASK, Decisions, flat, scatter_valid, valid_mask
from anypo.types import Trajectories
from anypo.views import Network


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

    def encode_batch(self, observations: Sequence[Any]) -> Shaped[np.ndarray, "observation ..."]:
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

    def frozen_for_rollout(self) -> AbstractContextManager[None]:
        """Promise within the context that no parameter changes, so that `act` may keep what depends on parameters alone."""
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
        valid = valid_mask(b)
        every = b.mask is None or bool(valid.all())
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
        return {name: scatter_valid(x, valid) for name, x in found.items()}

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
        valid = valid_mask(b)
        features = self.features(b.trace["obs"][valid])
        distribution = self.distribution(features, b.trace[MASK][valid] if MASK in b.trace else None)
        if not isinstance(distribution, Categoricals) or len(distribution.logps) > 1 or b.advantage is None:
            raise UsageError("the curvature of a step is known for policies with one categorical action only")
        found = step_products(
            self.hidden(features), distribution.logps[0], b.trace["action"][valid], b.advantage[valid], moments
        )
        return {name: scatter_valid(x, valid) for name, x in found.items()}

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
