"""Value functions with networks of their own: ensembles evaluated in one batched product per layer, and autoencoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anypo.stages import Network


class Ensemble(nn.Module):
    """`size` perceptrons with the same shape and ReLU between layers, [M, inputs] -> [M, size, outputs].

    Weights and biases are drawn from U(-1/sqrt(inputs), 1/sqrt(inputs)), each member's on its own. norm: layer
    normalization, with a gain and a shift of each member's own, before every activation (arXiv 2302.02948, sec. 4.2).
    """

    def __init__(self, size: int, widths: Sequence[int], norm: bool, generator: torch.Generator):
        super().__init__()
        self.size, self.norm = size, norm

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)

        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([uniform(1 / math.sqrt(a), size, a, b) for a, b in pairs])
        self.biases = nn.ParameterList([uniform(1 / math.sqrt(a), size, 1, b) for a, b in pairs])
        inner = widths[1:-1] if norm else ()
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(size, 1, width)) for width in inner])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(size, 1, width)) for width in inner])

    def forward(self, x: Float[Tensor, "sample input"], frozen: bool = False) -> Float[Tensor, "sample member output"]:
        """frozen: the parameters are constants; the gradient runs to x alone.

        Under autocast the products between hidden layers, nearly all of the work, are in bfloat16; inputs and outputs, whose
        differences matter, are not.
        """

        def fixed(p: Tensor) -> Tensor:
            return p.detach() if frozen else p

        last, kind = len(self.weights) - 1, x.device.type
        half = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if half else nullcontext():
            out = x.expand(self.size, *x.shape)
            for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                weight, bias = fixed(weight), fixed(bias)
                if half and 0 < k < last:
                    out = torch.bmm(out.bfloat16(), weight.bfloat16()).float() + bias
                else:
                    out = torch.baddbmm(bias, out, weight)
                if k < last:
                    if self.norm:
                        out = nn.functional.layer_norm(out, out.shape[-1:])
                        out = out * fixed(self.gains[k]) + fixed(self.shifts[k])
                    out = out.relu()
        return out.transpose(0, 1)


class Autoencoder(nn.Module):
    """A variational autoencoder of actions given states with a latent of twice the action's size, decoder bounded by tanh.

    Source: BCQ, arXiv 1812.02900; as in A2PR, arXiv 2405.19909.
    """

    def __init__(self, state: int, action: int, width: int, generator: torch.Generator):
        super().__init__()
        self.latent = 2 * action
        self.encoder = Ensemble(1, (state + action, width, width, 2 * self.latent), False, generator)
        self.decoder = Ensemble(1, (state + self.latent, width, width, action), False, generator)

    def forward(
        self, state: Float[Tensor, "sample state"], action: Float[Tensor, "sample action"], noise: Tensor | None
    ) -> tuple[Float[Tensor, "sample action"], Float[Tensor, " sample"]]:
        """(reconstruction, KL(N(mean, std^2) || N(0, 1)) averaged over the latent); without noise the latent is its mean."""
        mean, log_std = self.encoder(torch.cat([state, action], -1))[:, 0].chunk(2, -1)
        log_std = log_std.clamp(-4, 15)
        latent = mean if noise is None else mean + log_std.exp() * noise
        kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
        return self.decoder(torch.cat([state, latent], -1))[:, 0].tanh(), kl


def build(
    networks: Mapping[str, Network],
    state: int,
    action: int,
    choices: int,
    hidden: Sequence[int],
    generator: torch.Generator,
) -> nn.ModuleDict:
    """The modules of named value functions. With `choices` discrete actions Q(s, .) has one output per choice."""
    made = nn.ModuleDict()
    for name, spec in networks.items():
        if spec.of == "autoencoder":
            made[name] = Autoencoder(state, action, 3 * max(hidden), generator)
            continue
        inputs = state + (action if spec.of == "action" and not choices else 0)
        outputs = (choices if spec.of == "action" and choices else 1) * (2 if spec.spread else 1)
        made[name] = Ensemble(spec.ensemble, (inputs, *hidden, outputs), spec.norm, generator)
    return made
