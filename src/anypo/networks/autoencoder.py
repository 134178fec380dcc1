"""A variational autoencoder of actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.networks.perceptrons import Ensemble
from anypo.networks.registry import NetworkKind, Sizes, register_network
from anypo.views import Functional, Network


@register_network("autoencoder")
class Autoencoder(NetworkKind):
    """A variational autoencoder of actions given states with a latent of twice the action's size, decoder bounded by tanh.

    Gives NAME [M, A], the reconstructed action, and NAME_kl [M].
    Source: BCQ, arXiv 1812.02900; as in A2PR, arXiv 2405.19909.
    """

    reads: ClassVar[tuple[str, ...]] = ("obs", "action")

    def __init__(self, spec: Network, sizes: Sizes, generator: torch.Generator):
        super().__init__()
        self.latent = 2 * sizes.action
        width = 3 * max(sizes.hidden)
        self.encoder = Ensemble(1, (sizes.obs + sizes.action, width, width, 2 * self.latent), False, generator)
        self.decoder = Ensemble(1, (sizes.obs + self.latent, width, width, sizes.action), False, generator)

    @classmethod
    def outputs(cls, name: str, spec: Network) -> tuple[Functional, ...]:
        return Functional(name, ("action",)), Functional(f"{name}_kl")

    def values(self, name: str, at: Mapping[str, Any], want: Collection[str], frozen: bool) -> dict[str, Tensor]:
        reconstruction, kl = self(at["obs"], at["action"], at["noise"])
        return {name: reconstruction, f"{name}_kl": kl}

    def forward(
        self, state: Float[Tensor, "sample state"], action: Float[Tensor, "sample action"], noise: Tensor | None
    ) -> tuple[Float[Tensor, "sample action"], Float[Tensor, " sample"]]:
        """Return (reconstruction, KL(N(mean, std^2) || N(0, 1)) averaged over the latent); without noise the latent is its mean."""
        mean, log_std = self.encoder(state, action)[:, 0].chunk(2, -1)
        log_std = log_std.clamp(-4, 15)
        latent = mean if noise is None else mean + log_std.exp() * noise
        kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
        return self.decoder(state, latent)[:, 0].tanh(), kl
