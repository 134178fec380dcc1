"""Value functions with networks of their own: ensembles evaluated in one batched product per layer, and autoencoders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    def forward(
        self,
        x: Float[Tensor, "sample part"],
        more: Float[Tensor, "sample rest"] | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "sample member output"]:
        """more: the rest of the input. frozen: the parameters are constants; the gradient runs to the inputs alone.

        Under autocast the products between hidden layers, nearly all of the work, are in bfloat16; inputs and outputs, whose
        differences matter, are not.
        """

        weights, biases = fixed(self.weights, frozen), fixed(self.biases, frozen)
        with exact(x.device.type) as half:
            half = half and len(x) >= FEW
            if self.norm:
                whole = x if more is None else torch.cat([x, more], -1)
                out = normed(whole, weights, biases, fixed(self.gains, frozen), fixed(self.shifts, frozen), half)
            elif torch.is_grad_enabled():
                out = cast(Tensor, Layers.apply(half, x, more, *weights, *biases))
            else:
                out = propagated(x, more, weights, biases, half)[0]
        return out.transpose(0, 1)


FEW = 16
"""Samples below which rounding the weights costs more than it saves."""


def fixed(parameters: nn.ParameterList, frozen: bool) -> list[Tensor]:
    """The parameters, or frozen ones, by the dictionary: to index a ParameterList takes as long as a small product."""
    found = cast(list[Tensor], list(parameters._parameters.values()))
    return [p.detach() for p in found] if frozen else found


@contextmanager
def exact(device: str) -> Iterator[bool]:
    """Autocast off inside, for what casts by itself; gives whether it was on."""
    half = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, False)
    try:
        yield half
    finally:
        torch.set_autocast_enabled(device, half)


def normed(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], gains: list[Tensor], shifts: list[Tensor], half: bool
) -> Float[Tensor, "member sample output"]:
    """Perceptrons with layer normalization before every activation."""
    out, last = x.expand(len(weights[0]), *x.shape), len(weights) - 1
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if half and 0 < k < last:
            out = torch.bmm(out.bfloat16(), weight.bfloat16()).float() + bias
        else:
            out = torch.baddbmm(bias, out, weight)
        if k < last:
            out = (nn.functional.layer_norm(out, out.shape[-1:]) * gains[k] + shifts[k]).relu()
    return out


def propagated(
    x: Tensor, more: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], half: bool
) -> tuple[Float[Tensor, "member sample output"], list[Tensor], list[Tensor], list[Tensor]]:
    """Perceptrons, with what every layer read, the weights as multiplied, and the hidden activations."""
    out = x if more is None else torch.cat([x, more], -1)
    out, last = out.expand(len(weights[0]), *out.shape), len(weights) - 1
    read, used, hidden = [], [], []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rounded = half and 0 < k < last
        out, weight = (out.bfloat16(), weight.bfloat16()) if rounded else (out, weight)
        read.append(out)
        used.append(weight)
        if rounded:
            out = torch.bmm(out, weight).float().add_(bias)
        else:
            out = torch.baddbmm(bias, out, weight) if k < last else narrow(out, weight).add_(bias)
        if k < last:
            hidden.append(out.relu_())
    return out, read, used, hidden


NARROW = 16
"""Columns up to which a product is made the other way round: libraries for wide matrices are several times slower on narrow ones."""


def narrow(x: Float[Tensor, "member sample input"], weight: Float[Tensor, "member input output"]) -> Tensor:
    """x weight, with a few outputs."""
    if weight.shape[-1] == 1:
        return torch.stack([torch.mv(a, b) for a, b in zip(x, weight.squeeze(-1), strict=True)]).unsqueeze(-1)
    if weight.shape[-1] <= NARROW:
        return torch.bmm(weight.transpose(1, 2).contiguous(), x.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(x, weight)


def weight_slope(x: Float[Tensor, "member sample input"], slope: Float[Tensor, "member sample output"]) -> Tensor:
    """x' slope, the gradient of the weights."""
    if slope.shape[-1] <= NARROW:
        return torch.bmm(slope.transpose(1, 2), x).transpose(1, 2)
    return torch.bmm(x.transpose(1, 2), slope)


def input_slope(slope: Float[Tensor, "member sample output"], weight: Float[Tensor, "member input output"]) -> Tensor:
    """slope weight', the gradient of the input."""
    turned = weight.transpose(1, 2)
    return slope * turned if slope.shape[-1] == 1 else torch.bmm(slope, turned)


class Layers(torch.autograd.Function):
    """Perceptrons with their gradient written out: the same products, without what recorded operations add to them. No
    activation is copied, no gradient is computed of an input or a weight that needs none, casts are not undone and done again.
    """

    @staticmethod
    def forward(ctx: Any, half: bool, x: Tensor, more: Tensor | None, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        out, read, used, hidden = propagated(x, more, weights, biases, half)
        ctx.split = x.shape[-1]
        ctx.save_for_backward(*read, *used, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = (len(ctx.saved_tensors) + 1) // 3
        read, used, hidden = (ctx.saved_tensors[k * count : (k + 1) * count] for k in range(3))
        _, left, right, *needed = ctx.needs_input_grad
        slope = slopes[0].contiguous()
        weights: list[Tensor | None] = [None] * count
        biases: list[Tensor | None] = [None] * count
        with exact(slope.device.type):
            for k in reversed(range(count)):
                if needed[count + k]:
                    biases[k] = slope.sum(1, keepdim=True)
                slope = slope.to(read[k].dtype)
                if needed[k]:
                    weights[k] = weight_slope(read[k], slope).to(used[0].dtype)
                if k:
                    slope = input_slope(slope, used[k]).to(used[0].dtype)
                    slope = torch.ops.aten.threshold_backward(slope, hidden[k - 1], 0)
            x, more = (
                torch.bmm(slope, part.transpose(1, 2)).sum(0) if wanted else None
                for part, wanted in ((used[0][:, : ctx.split], left), (used[0][:, ctx.split :], right))
            )
        return None, x, more, *weights, *biases


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
        mean, log_std = self.encoder(state, action)[:, 0].chunk(2, -1)
        log_std = log_std.clamp(-4, 15)
        latent = mean if noise is None else mean + log_std.exp() * noise
        kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
        return self.decoder(state, latent)[:, 0].tanh(), kl


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
