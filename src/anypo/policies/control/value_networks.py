"""Value networks beside the policy: ensembles and autoencoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anypo.kernels.ensemble_mlp import MIN_HALF_ROWS, autocast_off, ensemble_mlp
from anypo.views import Network


class Ensemble(nn.Module):
    """`size` perceptrons with the same shape and ReLU between layers, [M, inputs] -> [M, size, outputs].

    Weights and biases are drawn from U(-1/sqrt(inputs), 1/sqrt(inputs)), independently for each member. norm: layer
    normalization, with a gain and a shift for each member, before every activation (arXiv 2302.02948, sec. 4.2).
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

    def forward(
        self,
        x: Float[Tensor, "sample part"],
        more: Float[Tensor, "sample rest"] | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "sample member output"]:
        """Evaluate every member. Under autocast the products between hidden layers, nearly all of the work, are in bfloat16;
        inputs and outputs, whose differences matter, are not.

        Args:
            x: the input of all members.
            more: further columns of the input.
            frozen: the parameters are constants; the gradient reaches the inputs alone.
        """
        weights, biases = _tensors(self.weights, frozen), _tensors(self.biases, frozen)
        with autocast_off(x.device.type) as half:
            half = half and len(x) >= MIN_HALF_ROWS
            if self.norm:
                x = x if more is None else torch.cat([x, more], -1)
                out = self._with_layer_norm(x, weights, biases, frozen, half)
            else:
                out = ensemble_mlp(x, more, weights, biases, half)
        return out.transpose(0, 1)

    def _with_layer_norm(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], frozen: bool, half: bool
    ) -> Float[Tensor, "member sample output"]:
        gains, shifts = _tensors(self.gains, frozen), _tensors(self.shifts, frozen)
        out, last = x.expand(self.size, *x.shape), len(weights) - 1
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if half and 0 < k < last:
                out = torch.bmm(out.bfloat16(), weight.bfloat16()).float() + bias
            else:
                out = torch.baddbmm(bias, out, weight)
            if k < last:
                out = (nn.functional.layer_norm(out, out.shape[-1:]) * gains[k] + shifts[k]).relu()
        return out


def _tensors(parameters: nn.ParameterList, frozen: bool) -> list[Tensor]:
    """Return the parameters, detached when frozen; by the dictionary, since to index a ParameterList takes as long as a small product."""
    tensors = cast(list[Tensor], list(parameters._parameters.values()))
    return [p.detach() for p in tensors] if frozen else tensors


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
        """Return (reconstruction, KL(N(mean, std^2) || N(0, 1)) averaged over the latent); without noise the latent is its mean."""
        mean, log_std = self.encoder(state, action)[:, 0].chunk(2, -1)
        log_std = log_std.clamp(-4, 15)
        latent = mean if noise is None else mean + log_std.exp() * noise
        kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
        return self.decoder(state, latent)[:, 0].tanh(), kl


def build_value_networks(
    networks: Mapping[str, Network],
    state: int,
    action: int,
    choices: int,
    hidden: Sequence[int],
    generator: torch.Generator,
    read: Callable[[nn.Module], nn.Module],
) -> nn.ModuleDict:
    """Build the modules of named value functions.

    Args:
        networks: value functions by name.
        state: length of the features of a state.
        action: components of an action.
        choices: discrete actions, for each of which Q(s, .) has an output; 0 for numbers.
        hidden: widths of the hidden layers.
        generator: draws the weights.
        read: puts a network behind what turns observations into features.
    """
    modules = nn.ModuleDict()
    for name, spec in networks.items():
        if spec.of == "autoencoder":
            modules[name] = read(Autoencoder(state, action, 3 * max(hidden), generator))
            continue
        inputs = state + (action if spec.of == "action" and not choices else 0)
        outputs = (choices if spec.of == "action" and choices else 1) * (2 if spec.spread else 1)
        modules[name] = read(Ensemble(spec.ensemble, (inputs, *hidden, outputs), spec.norm, generator))
    return modules
