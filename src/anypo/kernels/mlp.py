"""Small networks: linear layers with an activation between them, on CPUs as one function with a gradient of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALL = 2048
"""Numbers from which tanh by the sigmoid's vector code, four calls instead of one, is the faster one."""


ROWS = 512
"""Rows from which oneDNN's products, which use all of a CPU's vector width but cost more to call, are the faster ones."""


LARGEST = 4096
"""Rows beyond which there are several products: their intermediate results stay in the cache."""


NARROW = 16
"""Inputs or outputs below which a product is too thin for them at any number of rows."""


FUSED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


Rows = Float[Tensor, "row _"]


def tanh_(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1 in place, to within 2e-7 in float32: on CPUs several times as fast as torch's own."""
    return x.tanh_() if x.numel() < SMALL else x.mul_(2).sigmoid_().mul_(2).sub_(1)


ACTIVATIONS: dict[type[nn.Module], tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.Tanh: ("tanh", tanh_, torch.ops.aten.tanh_backward.default),
    nn.ReLU: ("relu", torch.relu_, lambda slope, y: torch.ops.aten.threshold_backward(slope, y, 0)),
}
"""Name in oneDNN, itself in place, and its slope given what it returned."""


def _product(x: Rows, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Rows:
    """then(x weight' + bias) by oneDNN."""
    if type(x) is not Tensor:  # being recorded: torch's compiler knows oneDNN's products of constant weights only
        return torch.ops.anypo.product(x, weight, bias, then)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, then, [], "")


OPERATIONS = torch.library.Library("anypo", "DEF")


if FUSED:
    OPERATIONS.define("product(Tensor x, Tensor weight, Tensor? bias, str then) -> Tensor")
    OPERATIONS.impl("product", _product, "CPU")
    torch.library.register_fake(
        "anypo::product", lambda x, weight, bias, then: x.new_empty(len(x), len(weight)), lib=OPERATIONS
    )


def _pieces(x: Rows) -> Sequence[Tensor]:
    """The rows in pieces whose numbers are powers of two, and what is left: oneDNN has to prepare itself for every number of rows
    it has not seen, which takes longer than a small product, so it should see few."""
    left, sizes = len(x), []
    while left >= ROWS:
        sizes.append(min(LARGEST, 1 << (left.bit_length() - 1)))
        left -= sizes[-1]
    return (x,) if len(sizes) + bool(left) < 2 else x.split([*sizes, left] if left else sizes)


def _layers(x: Rows, weights: Sequence[Tensor], kinds: Sequence[type[nn.Module]]) -> list[Rows]:
    """What every layer returns; the last one has an activation where there are as many of those."""
    fused, found = FUSED and len(x) >= ROWS, []
    for k, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        name, activate, _ = ACTIVATIONS[kinds[k]] if k < len(kinds) else ("none", None, None)
        if fused and len(weight) >= NARROW:
            x = _product(x, weight, bias, name)
        else:
            x = torch.addmm(bias, x, weight.t())
            x = x if activate is None else activate(x)
        found.append(x)
    return found


def _gradients(slope: Rows, x: Rows) -> tuple[Float[Tensor, "output input"], Float[Tensor, " output"]]:
    """Of a layer's weight and bias, given the slope of what it returned and what it read."""
    thin = min(x.shape[1], slope.shape[1]) < NARROW
    if FUSED and len(x) >= ROWS and not thin:
        return _product(slope.t(), x.t()), slope.sum(0)
    # of the two ways round, the thin matrix on the left is the fast one
    return (slope.t() @ x if slope.shape[1] <= x.shape[1] else (x.t() @ slope).t().contiguous()), slope.sum(0)


class _Layers(torch.autograd.Function):
    """The layers with their gradient, written out: nothing is recorded between them, and large products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, kinds: tuple[type[nn.Module], ...], x: Rows, *weights: Tensor) -> Rows:
        found = _layers(x, weights, kinds)
        ctx.kinds = kinds
        kept = found if len(kinds) == len(found) else found[:-1]
        ctx.save_for_backward(x, *weights[::2], *kept)
        return found[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Rows) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope, saved, kinds, wanted = slopes[0].contiguous(), ctx.saved_tensors, ctx.kinds, ctx.needs_input_grad
        depth = (len(wanted) - 2) // 2
        weights, seen = saved[1 : 1 + depth], (saved[0], *saved[1 + depth :])
        found: list[Any] = [None] * 2 * depth
        for k in reversed(range(depth)):
            if k < len(kinds):
                slope = ACTIVATIONS[kinds[k]][2](slope, seen[k + 1])
            if wanted[2 + 2 * k]:
                found[2 * k : 2 * k + 2] = _gradients(slope, seen[k])
            if k == 0 and not wanted[1]:
                return None, None, *found
            fused = FUSED and len(slope) >= ROWS and min(weights[k].shape) >= NARROW
            slope = _product(slope, weights[k].t()) if fused else slope @ weights[k]
        return None, slope, *found


class Perceptron(nn.Sequential):
    """Linear layers with an activation after each, or after each but the last."""

    @property
    def dtype(self) -> torch.dtype:
        return self._modules["0"]._parameters["weight"].dtype  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, input: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        layers: list[Any] = list(self._modules.values())
        plain = input.ndim != 2 or input.dtype != torch.float32 or input.device.type != "cpu"
        if plain or torch.is_autocast_enabled("cpu"):
            for layer in layers:
                input = layer.forward(input)  # without the bookkeeping of `nn.Module.__call__`
            return input
        weights = [p for layer in layers[::2] for p in layer._parameters.values()]
        kinds = tuple(map(type, layers[1::2]))
        if torch.is_grad_enabled():
            found: list[Any] = [_Layers.apply(kinds, piece, *weights) for piece in _pieces(input)]
        else:
            found = [_layers(piece, weights, kinds)[-1] for piece in _pieces(input)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def fold_weights(self) -> Callable[[Rows], Rows]:
        """The same function, for as long as no weight moves: what rollouts ask step by step, with few calls for few rows.

        tanh x = 2 sigmoid(2 x) - 1, and its factors and shift go into the weights on either side.
        """
        layers: list[Any] = list(self._modules.values())
        weights = [p.detach() for layer in layers[::2] for p in layer._parameters.values()]
        kinds = tuple(map(type, layers[1::2]))
        if {*kinds} != {nn.Tanh} or len(kinds) == len(weights) // 2 or weights[0].dtype != torch.float32:
            return self.forward
        steps = []
        for k, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
            weight, bias = (weight, bias) if k == 0 else (2 * weight, bias - weight.sum(1))
            inner = 2 if k < len(kinds) else 1
            steps.append(((inner * weight).t().contiguous(), inner * bias))

        def forward(x: Rows) -> Rows:
            if len(x) >= ROWS:
                return self.forward(x)
            for weight, bias in steps[:-1]:
                x = torch.addmm(bias, x, weight).sigmoid_()
            weight, bias = steps[-1]
            return torch.addmm(bias, x, weight)

        return forward


def multilayer(
    widths: Sequence[int], gain: float, generator: torch.Generator, activation: type[nn.Module] = nn.Tanh
) -> Perceptron:
    """Linear layers with an activation between them; drawn from `generator`, the last one with the given gain."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        last = i == len(widths) - 2
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return Perceptron(*layers)
