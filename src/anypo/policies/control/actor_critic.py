"""The base class of policies for control: acting, exploring, evaluating."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.networks import Carried, NetworkKind, Sizes
from anypo.policies.control.distributions import Categoricals, require_choice, uniform_choices
from anypo.policies.control.observations import Flat
from anypo.policies.control.progress import choice_progress
from anypo.policies.curvature import Moments, step_products
from anypo.policies.decisions import Decisions, flat, refuse_text_views, scatter_valid, valid_mask
from anypo.rng import Rng
from anypo.types import MASK, Trajectories
from anypo.views import Functional, Network, register_functionals

FORBIDDEN = -1e30
"""Q of a choice the mask forbids: below every other, and finite, as a terminal state's is multiplied by 0."""


class ActorCritic(nn.Module):
    """Base of policies with an explicit action distribution; a subclass defines how observations become distributions.

    Trace: obs [N, T, ...], action [N, T] or [N, T, A], and action_mask [N, T, choices] where actions were constrained.
    """

    kind: str
    """Its name on the command line."""
    exact = True
    independent = True
    scalar = True
    """A decision is one number, stored [N, T] rather than [N, T, 1]."""
    heads: tuple[str, ...] = ()
    """Names of the value functions, in the order of `values`; the first one bootstraps."""
    networks: Mapping[str, Network] = {}
    """Networks beside its own, the modules of `critics`."""
    critics: Carried
    offers: tuple[str, ...] = ("obs", "action", "next")
    """What those may read."""
    distributed: frozenset[str] = register_functionals(*map(Functional, ("logp", "entropy", "score_norm")))
    """Functionals of the action distribution."""
    implicit = False
    """Greedy actions begin with noise too: they are samples of the learned distribution."""
    sizes: Sequence[int] = ()
    """Choices of every component of a discrete action; empty where actions are numbers."""
    imitation: str = "logp"
    """The functional that behaviour cloning maximises on an expert's actions."""

    @property
    def functionals(self) -> frozenset[str]:
        return self.distributed.union(self.heads, self.critics.outputs if self.networks else ())

    def carry(
        self,
        networks: Mapping[str, Network] | None,
        sizes: Sizes,
        generator: torch.Generator,
        wrap: Callable[[NetworkKind], nn.Module] | None = None,
    ) -> None:
        """Build the networks beside its own, as `Carried` does; without any there is no module and no parameter."""
        if networks:
            self.networks = dict(networks)
            self.critics = Carried(networks, self.offers, sizes, generator, wrap)

    def noise_shape(self, functional: str) -> tuple[int, ...] | None:
        """Return the shape of the normal numbers per decision that a functional is computed with; None: it needs none."""
        return self.critics.latent(functional) if self.networks else None

    encode: Any
    """Maps an observation to the vector that the policy stores."""

    def encode_batch(self, observations: Sequence[Any]) -> Shaped[np.ndarray, "observation ..."]:
        """Encode several observations, one a row."""
        if isinstance(self.encode, Flat):
            return self.encode.rows(observations)
        return np.stack([self.encode(observation) for observation in observations])

    def features(self, obs: Tensor) -> Tensor:
        """Map encoded observations to the networks' input."""
        return obs

    def distribution(self, features: Tensor, mask: Bool[Tensor, "decision choice"] | None) -> Any:
        """Return the action distribution: it has a mode, can be sampled and gives the log-probability of an action."""
        raise NotImplementedError

    def values(self, features: Tensor) -> Float[Tensor, "decision head"] | None:
        """Return the outputs of the value heads, or None without one."""
        raise NotImplementedError

    def hidden(self, features: Tensor) -> Float[Tensor, "decision width"]:
        """Return the input of the actor's last layer."""
        raise NotImplementedError

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        """Return the weights of the actor's last layer, and whether their shape is [width, choice]."""
        raise NotImplementedError

    def frozen_for_rollout(self) -> AbstractContextManager[None]:
        """Promise within the context that no parameter changes, so that `act` may keep what depends on parameters alone."""
        return nullcontext()

    @torch.no_grad()
    def act(
        self,
        obs: Shaped[Tensor, "batch ..."],
        rng: Rng,
        *,
        greedy: bool = False,
        action_mask: Bool[Tensor, "batch choice"] | None = None,
        random: float = 0.0,
        noise: float = 0.0,
        valued: bool = True,
    ) -> Decisions:
        """Decide for a batch of encoded observations: a sample, or the mode when greedy; see `Request` for the others.

        valued: include the states' values. `value_of` gives them for all steps of a rollout at once, which costs less.
        """
        if action_mask is not None:
            require_choice(action_mask, self.sizes or action_mask.shape[1:])
        action, logp = self.decide(obs, rng, greedy, action_mask)
        value = self.value_of(obs) if valued else None
        if random or noise:
            action = self.explore(action, rng, random, noise, action_mask)
        return Decisions(action.squeeze(-1) if self.scalar else action, logp, value)

    def decide(
        self,
        obs: Shaped[Tensor, "batch ..."],
        rng: Rng,
        greedy: bool,
        mask: Bool[Tensor, "batch choice"] | None,
    ) -> tuple[Shaped[Tensor, "batch component"], Float[Tensor, " batch"]]:
        """Sample actions, or take the modes; return them with their log-probabilities (nats)."""
        distribution = self.distribution(self.features(obs), mask)
        action = distribution.mode() if greedy else distribution.sample(rng)
        return action, distribution.logp(action)

    def explore(self, action: Tensor, rng: Rng, random: float, noise: float, mask: Tensor | None = None) -> Tensor:
        """Add Gaussian noise of deviation `noise` to actions; with probability `random` take any that the mask allows instead."""
        if noise and self.sizes:
            raise UsageError("noise is added to numbers, and actions are choices here; explore with --collect.random")
        if noise:
            action = (action + noise * rng.randn(*action.shape[1:])).clamp(-1, 1)
        if random:
            chance = rng.rand().reshape(-1, *[1] * (action.ndim - 1))
            action = torch.where(chance < random, self.uniform_action(action, rng, mask), action)
        return action

    def uniform_action(self, action: Tensor, rng: Rng, mask: Bool[Tensor, "batch choice"] | None = None) -> Tensor:
        """Sample uniform actions of the same shape: in [-1, 1], or any choice the mask allows."""
        uniform = rng.rand(*action.shape[1:])
        return uniform_choices(uniform, self.sizes, mask) if self.sizes else 2 * uniform - 1

    @torch.no_grad()
    def value_of(self, obs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, " batch"] | None:
        """Return V of encoded observations, or None without a value head."""
        values = self.values(self.features(obs))
        return None if values is None else values[:, 0]

    def evaluate(
        self,
        b: Trajectories,
        want: Collection[str],
        *,
        layer: int | None = None,
        temperature: float | None = None,
        frozen: bool = False,
    ) -> dict[str, Float[Tensor, "row step ..."]]:
        """Evaluate functionals of the decisions in the trace, differentiable; 0 where the mask is off.

        Args:
            b: the decisions.
            want: functionals: logp, entropy (nats), score_norm (squared), names of value functions.
            layer, temperature: refused; only language models have inner layers and a temperature.
            frozen: value networks are constants, so that the gradient reaches the actions alone.
        """
        refuse_text_views(layer, temperature)
        if missing := set(want) - self.functionals:
            raise UsageError(f"the method reads `{min(missing)}`, but the policy has no value head of that name")
        valid = valid_mask(b)
        full = b.mask is None or bool(valid.all())
        select = partial(flat, valid=None if full else valid)
        features = self.features(select(b.trace["obs"]))
        out = self._distribution_values(b, want, features, select) if self.distributed & set(want) else {}
        if set(self.heads) & set(want) and (values := self.values(features)) is not None:
            out |= {name: values[:, k] for k, name in enumerate(self.heads) if name in want}
        if self.networks:
            out |= self._network_values(b, want, features, select, frozen)
        return {name: scatter_valid(x, valid) for name, x in out.items()}

    def _distribution_values(
        self, b: Trajectories, want: Collection[str], features: Tensor, select: Callable[[Tensor], Tensor]
    ) -> dict[str, Float[Tensor, " decision"]]:
        """Evaluate the action distribution at the actions of the trace."""
        distribution = self.distribution(features, select(b.trace[MASK]) if MASK in b.trace else None)
        action = select(b.trace["action"])
        action = action.unsqueeze(-1) if self.scalar else action
        out = {}
        if "logp" in want:
            out["logp"] = distribution.logp(action)
        if "entropy" in want:
            out["entropy"] = distribution.entropy()
        if "score_norm" in want:
            out["score_norm"] = distribution.score_norm(action)
        return out

    def _network_values(
        self,
        b: Trajectories,
        want: Collection[str],
        features: Tensor,
        select: Callable[[Tensor], Tensor],
        frozen: bool,
    ) -> dict[str, Float[Tensor, "decision ..."]]:
        """Evaluate the networks beside its own; of the choices that a mask forbids the value is FORBIDDEN."""

        def show(key: str) -> Tensor | None:
            if key == "obs":
                return self.shown(features)
            x = b.trace.get(key)
            if x is None and key == "next":
                raise UsageError("a network reads what was observed next, and this batch does not say it")
            x = None if x is None else select(x)
            return self.shown(self.features(x)) if key == "next" and x is not None else x

        out = self.critics.evaluate(want, show, frozen)
        for choices in {f"{name}_all" for name in self.networks} & out.keys() if MASK in b.trace else ():
            out[choices] = torch.where(select(b.trace[MASK]).unsqueeze(-1), out[choices], FORBIDDEN)
        return out

    def shown(self, features: Tensor) -> Float[Tensor, "decision dim"]:
        """Return the features that networks beside its own read."""
        return features

    @torch.no_grad()
    def step_products(self, b: Trajectories, moments: Moments | None) -> dict[str, Float[Tensor, "row step"]]:
        """Compute `step_along` and `step_spread` of every decision (see `curvature.step_products`), for one categorical action."""
        valid = valid_mask(b)
        features = self.features(b.trace["obs"][valid])
        distribution = self.distribution(features, b.trace[MASK][valid] if MASK in b.trace else None)
        if not isinstance(distribution, Categoricals) or len(distribution.logps) > 1 or b.advantage is None:
            raise UsageError("the curvature of a step is known for policies with one categorical action only")
        products = step_products(
            self.hidden(features), distribution.logps[0], b.trace["action"][valid], b.advantage[valid], moments
        )
        return {name: scatter_valid(x, valid) for name, x in products.items()}

    def progress(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """See `choice_progress`."""
        return choice_progress(self, b)

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """Return b with every feature of every observation set to 0 independently with probability `share`."""
        obs = b.trace["obs"]
        obs = self.encode.expand(obs) if isinstance(self.encode, Flat) else obs
        kept = torch.rand(obs.shape, generator=generator) >= share
        return b.but(trace={**b.trace, "obs": torch.where(kept, obs, torch.zeros_like(obs))})

    def trace(
        self, obs: Shaped[Tensor, "batch ..."], action: Shaped[Tensor, "batch *action"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the trace of actions taken elsewhere, by an expert for example; random numbers come from `generator`."""
        return {"obs": obs[:, None], "action": action[:, None]}

    def observe(self, b: Trajectories) -> None:
        """Learn input statistics from a batch; without statistics there is nothing to do."""
