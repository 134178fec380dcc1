"""Models of the behavior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import Network, View


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
