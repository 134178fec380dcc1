"""Value of the policy and models of the behavior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.targets import backup
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Share
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Draw, Network, View


@register_part("critic")
@dataclass(frozen=True)
class PolicyValue:
    """mean (V(s) - y)^2, y = r + gamma (1 - d) min(min_i Q_i(s', a'), min_i Qbar_i(s', a')), a' the smoothed target action.

    Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    gamma: Share[float] = 0.99
    noise: NonNegative[float] = 0.2
    clip: NonNegative[float] = 0.5
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"v": Network("state")}
    live: ClassVar[dict[str, View]] = {"v": View("v")}

    @property
    def views(self) -> dict[str, View]:
        draw = Draw("target", "next", "mode", noise=self.noise, clip=self.clip)
        return {
            "q_next": View("q", "target", at="next", draw=draw),
            "q_next_now": View("q", at="next", draw=draw),
        }

    @property
    def reads(self) -> tuple[str, ...]:
        return ("v", "reward", "terminal", *self.views)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        worst = torch.minimum(b.need("q_next"), b.need("q_next_now")).min(-1).values
        v = b.need("v")
        loss = token_mean((v - backup(b, worst, self.gamma)).square(), b)
        return loss, {"v_loss": loss.detach(), "v": masked_mean(v.detach(), b.mask)}


@register_part("critic")
@dataclass(frozen=True)
class AdvantageAutoencoder:
    """mean[w |recon - a|^2 (mean over dimensions)] + KL / 2, w = 1[Q_1(s, a) > V(s)]: good actions alone are encoded.

    lr: its learning rate; None: that of the step. Source: A2PR, arXiv 2405.19909; ltlhuuu/A2PR.
    """

    lr: NonNegative[float] | None = 1e-3
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"vae": View("vae"), "vae_kl": View("vae_kl")}
    views: ClassVar[dict[str, View]] = {"q_now": View("q"), "v_now": View("v"), "taken": View("taken")}
    reads = ("vae", "vae_kl", "q_now", "v_now", "taken")

    @property
    def networks(self) -> dict[str, Network]:
        return {"vae": Network("autoencoder", lr=self.lr)}

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        error = (b.need("vae") - b.need("taken")).square().mean(-1)
        good = (b.need("q_now")[..., 0] > b.need("v_now")).to(error.dtype)
        loss = token_mean(good * error, b) + 0.5 * token_mean(b.need("vae_kl"), b)
        return loss, {"vae_loss": loss.detach(), "good": masked_mean(good, b.mask)}
