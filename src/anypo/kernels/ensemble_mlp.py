"""Perceptron ensembles evaluated in one batched product per layer, with written-out gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW = 16
"""Samples below which rounding the weights costs more than it saves."""


def fixed(parameters: nn.ParameterList, frozen: bool) -> list[Tensor]:
    """The parameters, or frozen ones, by the dictionary: to index a ParameterList takes as long as a small product."""
    found = cast(list[Tensor], list(parameters._parameters.values()))
    return [p.detach() for p in found] if frozen else found


@contextmanager
def exact_products(device: str) -> Iterator[bool]:
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


NARROW_ENSEMBLE = 16
"""Columns up to which a product is made the other way round: libraries for wide matrices are several times slower on narrow ones."""


def narrow(x: Float[Tensor, "member sample input"], weight: Float[Tensor, "member input output"]) -> Tensor:
    """x weight, with a few outputs."""
    if weight.shape[-1] == 1:
        return torch.stack([torch.mv(a, b) for a, b in zip(x, weight.squeeze(-1), strict=True)]).unsqueeze(-1)
    if weight.shape[-1] <= NARROW_ENSEMBLE:
        return torch.bmm(weight.transpose(1, 2).contiguous(), x.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(x, weight)


def weight_grad(x: Float[Tensor, "member sample input"], slope: Float[Tensor, "member sample output"]) -> Tensor:
    """x' slope, the gradient of the weights."""
    if slope.shape[-1] <= NARROW_ENSEMBLE:
        return torch.bmm(slope.transpose(1, 2), x).transpose(1, 2)
    return torch.bmm(x.transpose(1, 2), slope)


def input_grad(slope: Float[Tensor, "member sample output"], weight: Float[Tensor, "member input output"]) -> Tensor:
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
        with exact_products(slope.device.type):
            for k in reversed(range(count)):
                if needed[count + k]:
                    biases[k] = slope.sum(1, keepdim=True)
                slope = slope.to(read[k].dtype)
                if needed[k]:
                    weights[k] = weight_grad(read[k], slope).to(used[0].dtype)
                if k:
                    slope = input_grad(slope, used[k]).to(used[0].dtype)
                    slope = torch.ops.aten.threshold_backward(slope, hidden[k - 1], 0)
            x, more = (
                torch.bmm(slope, part.transpose(1, 2)).sum(0) if wanted else None
                for part, wanted in ((used[0][:, : ctx.split], left), (used[0][:, ctx.split :], right))
            )
        return None, x, more, *weights, *biases
