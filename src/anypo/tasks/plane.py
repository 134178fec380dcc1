"""A bandit in the plane with several equally good actions, and an expert that uses all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anypo.errors import UsageError
from anypo.ranges import Finite, NonNegative, Positive, Range
from anypo.rng import RowRng, held_out_seeds, request_seeds
from anypo.types import Request, Trajectories

REACH = 1.5
"""Actions lie in [-REACH, REACH]^2."""


NEAR = 0.2
"""A sample this close to a mode is precise."""


COVERED = 0.05
"""A mode is covered while at least this share of the samples lies near it, within `2 * NEAR`."""


SAMPLES = 1000


class Multimodal:
    """One action a in the plane per row, one constant observation. The modes c_m lie on a circle of radius sqrt(2), four
    of them at (+-1, +-1); the expert draws a mode and adds N(0, 0.05^2).

        gold = max over paying m of exp(-|a - c_m|^2 / (2 width^2)),   reward = gold + bump exp(-|a - 1.4 c_0|^2 / (2 width^2))

    modes: how many. paying: indices of the modes that pay (None: all). width: of a mode. bump: height of a flaw of the reward beyond the
    first mode; gold is the intended reward.

    The held-out measures are means over samples of the policy: reward, gold, precision (within 0.2 of some mode), coverage (the
    least share that a paying mode has), modes (paying modes that keep at least 5% of the samples).
    """

    name = "multimodal"
    metric = "reward"
    unit = "batches"
    continuing = False
    channels = ("reward",)
    default_policy = "mlp"
    starts = 1

    def __init__(
        self,
        *,
        modes: Annotated[int, Range(least=1, most=1_000)] = 4,
        paying: Sequence[NonNegative[int]] | None = None,
        width: Positive[float] = 0.3,
        bump: Finite[float] = 0.0,
    ):
        if paying is not None and not (paying and all(0 <= m < modes for m in paying)):
            raise UsageError(f"the paying modes are some of 0 to {modes - 1}, not {list(paying)}")
        angle = 2 * math.pi * (torch.arange(modes) + 0.5) / modes
        self.modes = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
        self.paying = self.modes if paying is None else self.modes[list(paying)]
        self.width, self.bump = width, bump
        self.demo_count = 0
        """Demonstrations so far: the position in their stream of random numbers."""

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(1)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-REACH, REACH, (2,), np.float32)

    def gold(self, action: Float[Tensor, "sample 2"]) -> Float[Tensor, " sample"]:
        """Return the intended reward of an action."""
        distance = torch.cdist(action, self.paying).amin(1)
        return (-0.5 * (distance / self.width).square()).exp()

    def reward(self, action: Float[Tensor, "sample 2"]) -> Float[Tensor, " sample"]:
        """Return the reward of an action, with the flaw."""
        beyond = (action - 1.4 * self.modes[0]) / self.width
        return self.gold(action) + self.bump * (-0.5 * beyond.square().sum(1)).exp()

    def observations(self, policy: Any, count: int) -> Tensor:
        return torch.from_numpy(np.stack([policy.encode(0)])).expand(count, -1)

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Take `samples` actions for each request; score [N]."""
        samples = torch.tensor([r.samples for r in requests])
        obs = self.observations(policy, int(samples.sum()))
        decided = policy.act(obs, RowRng(request_seeds(seed, requests)))
        action = torch.from_numpy(policy.env_action(decided.action))
        score = self.reward(action)
        logp, value, trace = decided.rows(obs)
        batch = Trajectories(
            logp_old=logp,
            value=value,
            mask=torch.ones(logp.shape, dtype=torch.bool),
            score=score,
            scores=score[:, None],
            group=torch.arange(len(requests)).repeat_interleave(samples),
            segment=torch.zeros(logp.shape, dtype=torch.long),
            bootstrap=torch.zeros(len(score)),
            done=torch.ones(len(score), dtype=torch.bool),
            trace=trace,
        )
        metrics = {"train/reward": score.mean().item(), "train/gold": self.gold(action).mean().item()}
        return batch, metrics | {"env_steps": float(len(score))}

    def experts(
        self, policy: Any, count: int, generator: torch.Generator
    ) -> tuple[Shaped[Tensor, "sample stored"], Float[Tensor, "sample component"]]:
        """Observations and the expert's actions, as the policy stores them."""
        which = torch.randint(len(self.modes), (count,), generator=generator)
        action = self.modes[which] + 0.05 * torch.randn(count, 2, generator=generator)
        return self.observations(policy, count), policy.from_env(action.numpy())

    def demonstrate(self, policy: Any, requests: list[Request]) -> Trajectories:
        """Return the requested number of the expert's actions, other ones every time."""
        count = sum(r.samples for r in requests)
        generator = torch.Generator().manual_seed(self.demo_count)
        self.demo_count += count
        obs, action = self.experts(policy, count, generator)
        b = Trajectories(trace=policy.trace(obs, action, generator))
        logp = policy.evaluate(b, {"logp"})["logp"]
        samples = torch.tensor([r.samples for r in requests])
        return Trajectories(
            logp_old=logp,
            mask=torch.ones(logp.shape, dtype=torch.bool),
            score=torch.full((count,), torch.nan),
            scores=torch.full((count, 1), torch.nan),
            group=torch.arange(len(requests)).repeat_interleave(samples),
            segment=torch.zeros(logp.shape, dtype=torch.long),
            expert_mask=torch.ones(count, dtype=torch.bool),
            done=torch.ones(count, dtype=torch.bool),
            trace=b.trace,
        )

    def sample(self, policy: Any, seed: int, count: int = SAMPLES) -> Float[Tensor, "sample 2"]:
        """Sample actions of the policy; of a generative policy with its deterministic sampler."""
        rng = RowRng(held_out_seeds(seed, count))
        decided = policy.act(self.observations(policy, count), rng, greedy=policy.implicit)
        return torch.from_numpy(policy.env_action(decided.action))

    def shares(self, action: Float[Tensor, "sample 2"]) -> Float[Tensor, " paying"]:
        """Share of the samples within 0.4 of each paying mode."""
        return (torch.cdist(action, self.paying) < 2 * NEAR).float().mean(0)

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        action = self.sample(policy, seed, SAMPLES if episodes is None else episodes)
        shares = self.shares(action)
        return {
            "reward": self.reward(action).mean().item(),
            "gold": self.gold(action).mean().item(),
            "precision": (torch.cdist(action, self.modes).amin(1) < NEAR).float().mean().item(),
            "coverage": shares.min().item(),
            "modes": float((shares >= COVERED).sum()),
        }

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Recommend settings for a policy of ten steps, or of one."""
        requests, samples = (8, 16) if traits.get("grouped") else (128, 1)
        return {
            "lr": 1e-3,
            "requests": requests,
            "samples": samples,
            "horizon": None,
            "epochs": 4 if traits.get("critic") else 1,
            "minibatch": 320 if traits.get("critic") else None,
            "steps": 100,
        }

    def state_dict(self) -> dict[str, Any]:
        """How many demonstrations there were; everything else follows from the seed given."""
        return {"shown": self.demo_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.demo_count = state["shown"]
