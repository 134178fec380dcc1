"""A contextual bandit whose best arms are known."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch

from anypo.ranges import NonNegative, Range, Seed
from anypo.rng import RowRng, held_out_seeds, keyed, request_keys, request_seeds
from anypo.types import Request, Trajectories

CONTEXT_DRAW = -1
"""The sample whose stream a drawn context is taken from."""


class Bandit:
    """One decision per row: context c, arm a, reward means[c, a] + noise * N(0, 1); means ~ U(0, 1) drawn by `seed`.

    contexts, arms: how many. seed: of the means. noise: standard deviation of a reward.

    The held-out measure is exact: the mean over contexts of the greedy arm's expected reward.
    """

    name = "bandit"
    metric = "reward"
    unit = "batches"
    continuing = False
    channels = ("reward",)
    default_policy = "table"

    def __init__(
        self,
        *,
        contexts: Annotated[int, Range(least=1, most=10_000)] = 8,
        arms: Annotated[int, Range(least=1, most=1_000)] = 10,
        seed: Seed = 0,
        noise: NonNegative[float] = 0.1,
    ):
        self.starts = contexts
        self.arms = arms
        self.noise = noise
        self.means = torch.from_numpy(np.random.default_rng(seed).random((contexts, arms), dtype=np.float32))

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(self.starts)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(self.arms)

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Make `samples` decisions for the context of each request (a random one where `start` is None); score [N]."""
        random = keyed(seed, request_keys(requests), CONTEXT_DRAW) % np.uint64(self.starts)
        contexts = [c if r.start is None else r.start for c, r in zip(random.tolist(), requests, strict=True)]
        rng = RowRng(request_seeds(seed, requests))
        samples = torch.tensor([r.samples for r in requests])
        context = torch.tensor(contexts).repeat_interleave(samples)
        obs = torch.from_numpy(np.stack([policy.encode(c) for c in context.tolist()]))
        decided = policy.act(obs, rng)
        score = self.means[context, decided.action] + self.noise * rng.randn()
        logp, value, trace = decided.rows(obs)
        batch = Trajectories(
            logp_old=logp,
            value=value,
            mask=torch.ones(logp.shape, dtype=torch.bool),
            score=score,
            scores=score[:, None],
            group=torch.arange(len(requests)).repeat_interleave(samples),
            bootstrap=torch.zeros(len(context)),
            done=torch.ones(len(context), dtype=torch.bool),
            trace=trace,
        )
        return batch, {"train/reward": score.mean().item(), "env_steps": float(len(context))}

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Compute the expected reward of the greedy arms over all contexts, and the regret: how much more the best arms give."""
        obs = torch.from_numpy(np.stack([policy.encode(c) for c in range(self.starts)]))
        arms = policy.act(obs, RowRng(held_out_seeds(seed, self.starts)), greedy=True).action
        reward = self.means.gather(1, arms[:, None]).mean()
        return {"reward": reward.item(), "regret": (self.means.max(1).values.mean() - reward).item()}

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Recommend settings for a table."""
        requests, samples = (8, 8) if traits.get("grouped") else (64, 1)
        return {
            "lr": 0.05,
            "requests": requests,
            "samples": samples,
            "horizon": 1,
            "epochs": 4 if traits.get("critic") else 1,
            "minibatch": 64,
            "steps": 300,
        }

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the means follow from the seed, everything else from the seed given."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
