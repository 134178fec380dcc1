"""Perceptron ensembles evaluated in one batched product per layer, with written-out gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from anypo.kernels import kernel

MIN_HALF_ROWS = 16
"""Samples below which rounding the weights costs more than it saves."""


NARROW_ENSEMBLE = 16
"""Columns up to which a product is made the other way round: libraries for wide matrices are several times slower on narrow ones."""


Output = Float[Tensor, "member sample output"]


@contextmanager
def autocast_off(device: str) -> Iterator[bool]:
    """Switch autocast off within the context, for code that casts by itself; gives whether it was on."""
    half = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, False)
    try:
        yield half
    finally:
        torch.set_autocast_enabled(device, half)


def plain_ensemble_mlp(
    x: Tensor, more: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], half: bool
) -> Output:
    """x_{k+1} = relu(x_k W_k + b_k) of every member, without relu after the last layer.

    Args:
        x: the input of all members.
        more: further columns of the input.
        weights: [member, input, output] of every layer.
        biases: [member, 1, output] of every layer.
        half: round what the products between hidden layers read to bfloat16.
    """
    x = x if more is None else torch.cat([x, more], -1)
    out, last = x.expand(len(weights[0]), *x.shape), len(weights) - 1
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rounded = half and 0 < k < last
        out = ((out.bfloat16() @ weight.bfloat16()).float() if rounded else out @ weight) + bias
        out = out.relu() if k < last else out
    return out


@kernel(plain_ensemble_mlp)
def ensemble_mlp(
    x: Tensor, more: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], half: bool
) -> Output:
    """x_{k+1} = relu(x_k W_k + b_k) of every member, with a written-out gradient; arguments as in `plain_ensemble_mlp`."""
    if torch.is_grad_enabled():
        return cast(Tensor, _Layers.apply(half, x, more, *weights, *biases))
    return _forward(x, more, weights, biases, half)[0]


def _forward(
    x: Tensor, more: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], half: bool
) -> tuple[Output, list[Tensor], list[Tensor], list[Tensor]]:
    """Return the output, the input of every layer, the weights as multiplied, and the hidden activations."""
    out = x if more is None else torch.cat([x, more], -1)
    out, last = out.expand(len(weights[0]), *out.shape), len(weights) - 1
    inputs, used, hidden = [], [], []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rounded = half and 0 < k < last
        out, weight = (out.bfloat16(), weight.bfloat16()) if rounded else (out, weight)
        inputs.append(out)
        used.append(weight)
        if rounded:
            out = torch.bmm(out, weight).float().add_(bias)
        else:
            out = torch.baddbmm(bias, out, weight) if k < last else _narrow_product(out, weight).add_(bias)
        if k < last:
            hidden.append(out.relu_())
    return out, inputs, used, hidden


def _narrow_product(x: Float[Tensor, "member sample input"], weight: Float[Tensor, "member input output"]) -> Tensor:
    """x weight, fast for few outputs."""
    if weight.shape[-1] == 1:
        return torch.stack([torch.mv(a, b) for a, b in zip(x, weight.squeeze(-1), strict=True)]).unsqueeze(-1)
    if weight.shape[-1] <= NARROW_ENSEMBLE:
        return torch.bmm(weight.transpose(1, 2).contiguous(), x.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(x, weight)


def _weight_grad(x: Float[Tensor, "member sample input"], grad: Float[Tensor, "member sample output"]) -> Tensor:
    """x' grad, the gradient of the weights."""
    if grad.shape[-1] <= NARROW_ENSEMBLE:
        return torch.bmm(grad.transpose(1, 2), x).transpose(1, 2)
    return torch.bmm(x.transpose(1, 2), grad)


def _input_grad(grad: Float[Tensor, "member sample output"], weight: Float[Tensor, "member input output"]) -> Tensor:
    """grad weight', the gradient of the input."""
    transposed = weight.transpose(1, 2)
    return grad * transposed if grad.shape[-1] == 1 else torch.bmm(grad, transposed)


class _Layers(torch.autograd.Function):
    """Perceptrons with their gradient written out: the same products, without what recorded operations add to them. No
    activation is copied, no gradient is computed of an input or a weight that needs none, casts are not undone and done again.
    """

    @staticmethod
    def forward(ctx: Any, half: bool, x: Tensor, more: Tensor | None, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        out, inputs, used, hidden = _forward(x, more, weights, biases, half)
        ctx.split = x.shape[-1]
        ctx.save_for_backward(*inputs, *used, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = (len(ctx.saved_tensors) + 1) // 3
        inputs, used, hidden = (ctx.saved_tensors[k * count : (k + 1) * count] for k in range(3))
        _, left, right, *needed = ctx.needs_input_grad
        grad = grads[0].contiguous()
        weights: list[Tensor | None] = [None] * count
        biases: list[Tensor | None] = [None] * count
        with autocast_off(grad.device.type):
            for k in reversed(range(count)):
                if needed[count + k]:
                    biases[k] = grad.sum(1, keepdim=True)
                grad = grad.to(inputs[k].dtype)
                if needed[k]:
                    weights[k] = _weight_grad(inputs[k], grad).to(used[0].dtype)
                if k:
                    grad = _input_grad(grad, used[k]).to(used[0].dtype)
                    grad = torch.ops.aten.threshold_backward(grad, hidden[k - 1], 0)
            x, more = (
                torch.bmm(grad, part.transpose(1, 2)).sum(0) if needs else None
                for part, needs in ((used[0][:, : ctx.split], left), (used[0][:, ctx.split :], right))
            )
        return None, x, more, *weights, *biases
