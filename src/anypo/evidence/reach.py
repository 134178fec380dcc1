"""A point reaches for a goal: a small control task of tensors, with data of known quality and known best actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anypo.rng import BatchRng, Rng, RowRng, held_out_seeds, request_seeds
from anypo.types import Request, Trajectories

MOVES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


class Reach:
    """x in [-1, 1]^2 moves by `stride` * a (a in [-1, 1]^2, or one of five moves) plus noise; the reward is 1 - |x - goal|, 12 times.

    reward_scale: rewards are multiplied by it. data: what `transitions` hold: `random` actions, the `expert`'s (straight to the goal,
    with noise 0.1), or `mixed`, eight episodes of ten random. outliers: share of recorded rewards that are 100 instead. marked: the
    expert's transitions are marked, and rewards are not to be used. peaks: instead, one decision a in [-1, 1] with the reward
    exp(-(a - 0.7)^2 / 0.02) + exp(-(a + 0.7)^2 / 0.02).
    """

    name = "reach"
    metric = "return"
    unit = "batches"
    continuing = False
    channels = ("return",)
    default_policy = "mlp"
    starts = None

    def __init__(
        self,
        *,
        seed: int = 0,
        discrete: bool = False,
        reward_scale: float = 1.0,
        data: str | None = None,
        episodes: int = 100,
        outliers: float = 0.0,
        marked: bool = False,
        peaks: bool = False,
        stride: float = 0.25,
        noise: float = 0.02,
    ):
        from gymnasium.spaces import Box, Discrete

        self.seed, self.discrete, self.scale, self.peaks = seed, discrete, reward_scale, peaks
        self.stride, self.noise, self.horizon = stride, noise, 1 if peaks else 12
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Discrete(5) if discrete else Box(-1, 1, (1 if peaks else 2,), np.float32)
        g = torch.Generator().manual_seed(seed)
        self.goal = 1.2 * torch.rand(2, generator=g) - 0.6
        if data is not None:
            self.table = self.record_episodes(data, episodes, outliers, marked, g)
            self.transitions = lambda: self.table

    def begin(self, count: int, g: torch.Generator) -> Float[Tensor, "row 2"]:
        return torch.zeros(count, 2) if self.peaks else 2 * torch.rand(count, 2, generator=g) - 1

    def step(self, x: Float[Tensor, "row 2"], action: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return (next positions, rewards)."""
        if self.peaks:
            a = action[:, 0]
            return x, self.scale * ((-(a - 0.7).square() / 0.02).exp() + (-(a + 0.7).square() / 0.02).exp())
        move = MOVES[action] if self.discrete else action.clamp(-1, 1)
        x = (x + self.stride * move + self.noise * rng.randn(2)).clamp(-1, 1)
        return x, self.scale * (1 - (x - self.goal).norm(dim=1))

    def expert_action(self, x: Float[Tensor, "row 2"]) -> Tensor:
        """Return the expert's action: straight to the goal."""
        return ((self.goal - x) / self.stride).clamp(-1, 1)

    def record_episodes(
        self, data: str, episodes: int, outliers: float, marked: bool, g: torch.Generator
    ) -> dict[str, Tensor]:
        """Record the data set, episode after episode."""
        skilled = torch.full((episodes,), data == "expert")
        if data == "mixed":
            skilled = torch.arange(episodes) % 5 == 0
        x, columns = self.begin(episodes, g), []
        for t in range(self.horizon):
            noisy = (self.expert_action(x) + 0.1 * torch.randn(x.shape, generator=g)).clamp(-1, 1)
            action = torch.where(skilled[:, None], noisy, 2 * torch.rand(x.shape, generator=g) - 1)
            following, reward = self.step(x, action, BatchRng(g, episodes))
            reward = torch.where(torch.rand(episodes, generator=g) < outliers, 100.0, reward)
            terminal = torch.full((episodes,), float(t == self.horizon - 1))
            columns.append({"obs": x, "action": action, "next": following, "reward": reward, "terminal": terminal})
            x = following
        table = {name: torch.stack([c[name] for c in columns], 1).flatten(0, 1) for name in columns[0]}
        table["episode"] = torch.arange(episodes).repeat_interleave(self.horizon)
        if marked:
            table["expert"] = skilled.repeat_interleave(self.horizon).float()
        return table

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Roll out whole episodes; the rows of a request begin in the same place."""
        samples = torch.tensor([r.samples for r in requests])
        places = [self.begin(1, torch.Generator().manual_seed(hash((self.seed, r.start)) % 2**31)) for r in requests]
        x = torch.cat(places).repeat_interleave(samples, 0)
        explore = {"random": requests[0].random, "noise": requests[0].noise}
        explore = explore if any(explore.values()) else {}
        log: dict[str, list[Tensor]] = {name: [] for name in ("obs", "action", "logp", "reward", "value")}
        rng = RowRng(request_seeds(seed, requests), self.horizon)
        for t in range(self.horizon):
            decision = policy.act(x, rng.at(t), **explore)
            log["obs"].append(x)
            log["action"].append(decision.action)
            log["logp"].append(decision.logp)
            if decision.value is not None:
                log["value"].append(decision.value)
            x, reward = self.step(x, decision.action, rng)
            log["reward"].append(reward)
        columns = {name: torch.stack(values, 1) for name, values in log.items() if values}
        reward = columns["reward"]
        b = Trajectories(
            logp_old=columns["logp"],
            value=columns.get("value"),
            mask=torch.ones(reward.shape, dtype=torch.bool),
            reward=reward,
            score=reward.sum(1),
            group=torch.arange(len(requests)).repeat_interleave(samples),
            bootstrap=torch.zeros(len(reward)),
            done=torch.ones(len(reward), dtype=torch.bool),
            trace={"obs": columns["obs"], "action": columns["action"]},
            extra={"last": x},
        )
        return b, {"env_steps": float(reward.numel()), "train/return": float(reward.sum(1).mean())}

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Measure 200 greedy episodes: mean return (in units of reward 1); overestimation: mean Q minus the discounted return, where
        the policy has a network q; modes: peaks that at least a tenth of its samples hit."""
        g = torch.Generator().manual_seed(12345)
        x = start = self.begin(200, g)
        rng = RowRng(held_out_seeds(seed, 200))
        total, discounted = torch.zeros(200), torch.zeros(200)
        first = action = policy.act(x, rng, greedy=not self.peaks).action
        for t in range(self.horizon):
            if t > 0:
                action = policy.act(x, rng.at(t), greedy=True).action
            x, reward = self.step(x, action, BatchRng(g, 200))
            total, discounted = total + reward, discounted + 0.99**t * reward
        measures = {"return": float(total.mean()) / self.scale}
        if "q" in policy.functionals:
            b = Trajectories(
                mask=torch.ones(200, 1, dtype=torch.bool), trace={"obs": start[:, None], "action": first[:, None]}
            )
            with torch.no_grad():
                q = policy.evaluate(b, {"q"})["q"].mean(-1)[:, 0]
            measures["overestimation"] = float((q - discounted).mean()) / self.scale
        if self.peaks:
            near = [float(((first[:, 0] - peak).abs() < 0.15).float().mean()) for peak in (0.7, -0.7)]
            measures["modes"] = float(sum(share >= 0.1 for share in near))
        return measures

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        return {"horizon": self.horizon}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the task is a function of its settings."""
