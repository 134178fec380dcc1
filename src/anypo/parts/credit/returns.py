"""Returns and advantage estimators along a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anypo.numbers import Number
from anypo.parts.ops.masked import last_valid, next_valid
from anypo.parts.ops.outcomes import bootstrap_of, channel_reward, finished, head_field, rewarded
from anypo.parts.ops.returns import discounted
from anypo.parts.registry import register_part
from anypo.ranges import Count, Filled, Finite, Named, Share
from anypo.types import Trajectories


@register_part("credit")
@dataclass(frozen=True)
class Returns:
    """A_t = sum_{k >= t} gamma^(k-t) r_k along the row's valid decisions, no baseline."""

    gamma: Share[Number] = 1.0

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        reward = torch.where(b.valid, b.need("reward"), 0.0)
        return b.but(advantage=torch.where(b.valid, discounted(reward, b.valid, float(self.gamma)), 0.0))


@register_part("credit")
@dataclass(frozen=True)
class Gae:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; returns R = A + V; V_old = V.

    V after the row's last decision is the bootstrap, 0 where the row is done. head: V is the value head of that name. channel: r is the
    reward channel `reward.NAME`, and A is written to `advantage.NAME`. Source: arXiv 1506.02438, eq. 16.
    """

    gamma: Share[Number] = 0.99
    lam: Share[Number] = 0.95
    head: Named[str] = "value"
    channel: Filled[str] | None = None
    bootstraps = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.head,) if self.channel is None else (self.head, f"reward.{self.channel}")

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b) if self.channel is None else b
        valid, value, gamma = b.valid, b.need(self.head).detach(), float(self.gamma)
        end = bootstrap_of(b, value, self.head).unsqueeze(1)
        following = torch.cat([value, end], 1).gather(1, next_valid(valid))
        delta = torch.where(valid, channel_reward(b, self.channel) + gamma * following - value, 0.0)
        advantage = torch.where(valid, discounted(delta, valid, gamma * float(self.lam)), 0.0)
        returns, old = head_field("returns", self.head), head_field("value_old", self.head)
        credit = "advantage" if self.channel is None else f"advantage.{self.channel}"
        return b.put({credit: advantage, returns: torch.where(valid, advantage + value, 0.0), old: value})


@register_part("credit")
@dataclass(frozen=True)
class NStep:
    """R_t = sum_{k<n} gamma^k r_{t+k} + gamma^n V_{t+n}, shorter at the end of a row; A_t = R_t - V_t.

    Source: A3C, arXiv 1602.01783, sec. 4.
    """

    n: Count[int] = 5
    gamma: Share[Number] = 0.99
    reads = ("value",)
    bootstraps = True

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        reward, value = b.need("reward"), b.need("value").detach()
        end, after = bootstrap_of(b, value).unsqueeze(1), next_valid(b.valid)
        target = value
        for _ in range(self.n):
            target = reward + float(self.gamma) * torch.cat([target, end], 1).gather(1, after)
        target = torch.where(b.valid, target, 0.0)
        return b.but(advantage=torch.where(b.valid, target - value, 0.0), returns=target, value_old=value)


@register_part("credit")
@dataclass(frozen=True)
class ExtendedGae(Gae):
    """GAE in which the value of what follows an unfinished row is held at that of its last decision, V(s_l) := V(s_{l-1}).

    returns: the sum of rewards to go, for the rows that are finished. Source: T-PPO, arXiv 2506.15050.
    """

    def __call__(self, b: Trajectories) -> Trajectories:
        value = b.need(self.head).detach()
        held = torch.where(last_valid(b.valid), value, 0.0).sum(1)
        after = b.but(done=None).put({head_field("bootstrap", self.head): torch.where(finished(b), 0.0, held)})
        to_go = Returns(self.gamma)(b.but(reward=channel_reward(b, self.channel))).need("advantage")
        extra = {name: x for name, x in b.extra.items() if name.startswith("bootstrap.")}
        credited = super().__call__(after).put({head_field("returns", self.head): to_go, **extra})
        return credited.but(bootstrap=b.bootstrap, done=b.done)


@register_part("credit")
@dataclass(frozen=True)
class AddAdvantage:
    """A <- A + weight A_k, A_k the advantage of the reward channel `channel` that `gae` wrote; of a cost the weight is negative.

    Source: PPO-Lagrangian, Ray, Achiam and Amodei, Benchmarking Safe Exploration, 2019, where the weight is a multiplier.
    """

    channel: Filled[str] = "cost"
    weight: Finite[Number] = -1.0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("advantage", f"advantage.{self.channel}")

    def __call__(self, b: Trajectories) -> Trajectories:
        return b.but(advantage=b.need("advantage") + float(self.weight) * b.need(f"advantage.{self.channel}"))
