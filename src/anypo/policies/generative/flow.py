"""Flow-matching policies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.kernels.mlp import build_mlp
from anypo.policies.generative.denoiser import BOX, FREQUENCIES, Denoiser, time_embedding
from anypo.ranges import Count, Positive, Range, Width
from anypo.rng import Rng
from anypo.views import Functional, Network, register_functionals

HOLD, FALL = 0.35, 0.3
"""Share of a run during which the bound of learned noise stays, and of its way to the lower one that it then falls (ReinFlow,
agent/finetune/reinflow/train_ppo_flow_agent.py)."""


class FlowPolicy(Denoiser):
    """Flow matching with the noise at time 0: x_t = (1 - t) z + t a, z ~ N(0, I), and the network learns v = a - z.

    Greedy: Euler steps x + v(x, k/K) / K. Otherwise, with h = 1/K and t = k h, by `noise`:
    sde: mean = x (1 - s^2 h / (2 (1 - t))) + v h (1 + s^2 t / (2 (1 - t))), std = s sqrt(h), s = level sqrt((1 - t) / t), at t = 0
    with t = h in the denominator: the marginals are those of the flow, whatever `level`.
    learned: mean = clip(x + h v, -1, 1), std of each component between `low` and a bound, by a second network, noise clipped at 3 std;
    the bound is `high` for 35% of a run and then falls along half a cosine to 0.3 low + 0.7 high.
    `imitation`: cfm, minus the squared error of v, the mean over components.
    Source: Flow matching, arXiv 2210.02747; sde: Flow-GRPO, arXiv 2505.05470 (there with the noise at time 1); learned: ReinFlow,
    arXiv 2505.22094.
    """

    kind = "flow"
    imitation = "cfm"
    register_functionals(Functional(imitation))
    bound: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[Width[int]] = (64, 64),
        steps: Annotated[int, Range(least=1, most=1000)] = 10,
        tuned: Count[int] | None = None,
        noise: Literal["sde", "learned"] = "sde",
        level: Positive[float] = 0.7,
        low: Positive[float] = 0.1,
        high: Positive[float] = 0.24,
        over: Literal["mean", "sum"] = "mean",
        value: bool | Sequence[str] = True,
        networks: Mapping[str, Network] | None = None,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__(
            observation_space, action_space, hidden=hidden, steps=steps, tuned=tuned, over=over, value=value, networks=networks,
            normalize=normalize, seed=seed,
        )  # fmt: skip
        if noise not in ("sde", "learned"):
            raise UsageError(f"the noise of a flow policy is 'sde' or 'learned', not {noise!r}")
        if min(level, low) <= 0 or high < low:
            raise UsageError("a flow policy explores by noise: level and low must be above 0, and high not below low")
        self.level, self.low, self.high = level, low, high
        inputs = len(self.encode.boxed) + 2 * len(FREQUENCIES)
        generator = torch.Generator().manual_seed(seed)
        self.spread = build_mlp([inputs, 64, 64, self.size], 0.01, generator) if noise == "learned" else None
        if noise == "learned":
            self.register_buffer("bound", torch.tensor(high, dtype=torch.float64))

    def anneal(self, progress: float) -> None:
        """Set the upper bound of learned noise for this share of a run."""
        if self.spread is not None:
            end = self.high - FALL * (self.high - self.low)
            share = min(max(progress - HOLD, 0.0) / (1 - HOLD), 1.0)
            self.bound.fill_(end + (self.high - end) * 0.5 * (1 + math.cos(math.pi * share)))

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        h, t = 1 / self.steps, step.to(x.dtype) / self.steps
        v = self.network(features, x, t)
        if self.spread is not None:
            lo, hi = 2 * math.log(self.low), 2 * self.bound.log()
            bend = self.spread(torch.cat([features, time_embedding(t)], -1)).tanh()
            return (x + h * v).clamp(-BOX, BOX), (0.5 * (lo + (hi - lo) * (bend + 1) / 2)).exp()
        left = (1 - t)[:, None]
        variance = self.level**2 * left / t.clamp(min=h)[:, None]
        pull = variance * h / (2 * left)
        return x * (1 - pull) + v * (h + pull * t[:, None]), (variance * h).sqrt().expand_as(x)

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        x = x + self.network(features, x, step.to(x.dtype) / self.steps) / self.steps
        return x if self.spread is None else x.clamp(-BOX, BOX)

    def chain_noise(self, rng: Rng) -> Tensor:
        noise = super().chain_noise(rng)
        return noise if self.spread is None else noise.clamp(-3, 3)

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        return (1 - time) * noise + time * action

    def regression_target(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        return action - noise
