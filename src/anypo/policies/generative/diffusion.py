"""Denoising-diffusion policies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.policies.generative.denoiser import BOX, Denoiser
from anypo.ranges import Count, NonNegative, Positive, Range, Width
from anypo.views import Functional, Network, register_functionals


class DiffusionPolicy(Denoiser):
    """Denoising diffusion: x = sqrt(abar) a + sqrt(1 - abar) e at `levels` levels of a squared-cosine schedule; the network learns e.

    The K steps go down the levels evenly, by DDIM with abar' at the level after: x0 = clip((x - sqrt(1 - abar) e) / sqrt(abar), -1, 1),
    e = (x - sqrt(abar) x0) / sqrt(1 - abar), mean = sqrt(abar') x0 + sqrt(1 - abar' - s^2) e, std = max(s, floor),
    s^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar'). eta = 1 is DDPM on these levels; greedy is eta = 0.
    `imitation`: denoising, minus the squared error of e, the mean over components.
    Source: Diffusion Policy, arXiv 2303.04137; DDIM, arXiv 2010.02502, eq. 12; schedule: arXiv 2102.09672; floor: DPPO, arXiv 2409.00588.
    """

    kind = "diffusion"
    imitation = "denoising"
    register_functionals(Functional(imitation))
    register_functionals(Functional(imitation))
    kept: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        hidden: Sequence[Width[int]] = (64, 64),
        steps: Annotated[int, Range(least=1, most=1000)] = 10,
        tuned: Count[int] | None = None,
        levels: Annotated[int, Range(least=2, most=10_000)] = 100,
        eta: NonNegative[float] = 1.0,
        floor: Positive[float] = 0.1,
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
        if levels < steps:
            raise UsageError(f"a diffusion policy cannot take {steps} steps down {levels} levels")
        if floor <= 0:
            raise UsageError(
                "a diffusion policy's last step is deterministic without a floor above 0, and has no log-probability"
            )
        self.levels, self.eta, self.floor = levels, eta, floor
        curve = np.cos((np.arange(levels + 1) / levels + 0.008) / 1.008 * math.pi / 2) ** 2
        alpha = 1 - np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        self.register_buffer("kept", torch.from_numpy(np.cumprod([1.0, *alpha])).float(), persistent=False)

    def transition(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        return self.ddim(features, x, step, self.eta)

    def greedy(
        self, features: Float[Tensor, "draw dim"], x: Float[Tensor, "draw component"], step: Int[Tensor, " draw"]
    ) -> Float[Tensor, "draw component"]:
        return self.ddim(features, x, step, 0.0)[0]

    def ddim(
        self,
        features: Float[Tensor, "draw dim"],
        x: Float[Tensor, "draw component"],
        step: Int[Tensor, " draw"],
        eta: float,
    ) -> tuple[Float[Tensor, "draw component"], Float[Tensor, "draw component"]]:
        level, after = (((self.steps - k) * self.levels) // self.steps for k in (step, step + 1))
        abar, following = self.kept[level][:, None], self.kept[after][:, None]
        e = self.network(features, x, 1 - level.to(x.dtype) / self.levels)
        x0 = ((x - (1 - abar).sqrt() * e) / abar.sqrt()).clamp(-BOX, BOX)
        e = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        variance = eta**2 * (1 - following) / (1 - abar) * (1 - abar / following)
        mean = following.sqrt() * x0 + (1 - following - variance).clamp(min=0).sqrt() * e
        return mean, variance.sqrt().clamp(min=self.floor).expand_as(x)

    def training_time(self, time: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
        return (time * self.levels).floor() / self.levels

    def blend(
        self, action: Float[Tensor, "*draw component"], noise: Float[Tensor, "*draw component"], time: Tensor
    ) -> Float[Tensor, "*draw component"]:
        abar = self.kept[((1 - time) * self.levels).round().long()]
        return abar.sqrt() * action + (1 - abar).sqrt() * noise

    def regression_target(
        self, action: Float[Tensor, "draw component"], noise: Float[Tensor, "draw component"]
    ) -> Float[Tensor, "draw component"]:
        return noise
