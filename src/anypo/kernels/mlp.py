"""Small networks: linear layers with an activation between them, on CPUs as one function with a written-out gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anypo.kernels import kernel

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


def plain_tanh_(x: Tensor) -> Tensor:
    """tanh x, in place."""
    return x.tanh_()


@kernel(plain_tanh_)
def tanh_(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1 in place, to within 2e-7 in float32: on CPUs several times as fast as torch's own."""
    return x.tanh_() if x.numel() < SMALL else x.mul_(2).sigmoid_().mul_(2).sub_(1)


ACTIVATIONS: dict[type[nn.Module], tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.Tanh: ("tanh", tanh_, torch.ops.aten.tanh_backward.default),
    nn.ReLU: ("relu", torch.relu_, lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0)),
}
"""Name in oneDNN, the function in place, and its gradient: (gradient of the output, output) -> gradient of the input."""


def _product(x: Rows, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Rows:
    """then(x weight' + bias) by oneDNN."""
    if type(x) is not Tensor:  # traced: torch's compiler knows oneDNN's products of constant weights only
        return torch.ops.anypo.product(x, weight, bias, then)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, then, [], "")


OPERATIONS = torch.library.Library("anypo", "DEF")


if FUSED:
    OPERATIONS.define("product(Tensor x, Tensor weight, Tensor? bias, str then) -> Tensor")
    OPERATIONS.impl("product", _product, "CPU")
    torch.library.register_fake(
        "anypo::product", lambda x, weight, bias, then: x.new_empty(len(x), len(weight)), lib=OPERATIONS
    )


def _chunks(x: Rows) -> Sequence[Tensor]:
    """Split the rows into chunks whose lengths are powers of two, and a remainder: oneDNN prepares itself for every new number of
    rows, which takes longer than a small product, so it should see few."""
    left, sizes = len(x), []
    while left >= ROWS:
        sizes.append(min(LARGEST, 1 << (left.bit_length() - 1)))
        left -= sizes[-1]
    return (x,) if len(sizes) + bool(left) < 2 else x.split([*sizes, left] if left else sizes)


def _layer_outputs(x: Rows, weights: Sequence[Tensor], kinds: Sequence[type[nn.Module]]) -> list[Rows]:
    """Return the outputs of every layer, after its activation; the last one has an activation where there are as many of those."""
    fused, outputs = FUSED and len(x) >= ROWS, []
    for k, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        name, activate, _ = ACTIVATIONS[kinds[k]] if k < len(kinds) else ("none", None, None)
        if fused and len(weight) >= NARROW:
            x = _product(x, weight, bias, name)
        else:
            x = torch.addmm(bias, x, weight.t())
            x = x if activate is None else activate(x)
        outputs.append(x)
    return outputs


def _linear_grads(grad: Rows, x: Rows) -> tuple[Float[Tensor, "output input"], Float[Tensor, " output"]]:
    """Gradients of a layer's weight and bias, given that of its output and its input."""
    thin = min(x.shape[1], grad.shape[1]) < NARROW
    if FUSED and len(x) >= ROWS and not thin:
        return _product(grad.t(), x.t()), grad.sum(0)
    # of the two ways round, the thin matrix on the left is the fast one
    return (grad.t() @ x if grad.shape[1] <= x.shape[1] else (x.t() @ grad).t().contiguous()), grad.sum(0)


class _Layers(torch.autograd.Function):
    """The layers with their gradient, written out: nothing is recorded between them, and large products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, kinds: Sequence[type[nn.Module]], x: Rows, *weights: Tensor) -> Rows:
        outputs = _layer_outputs(x, weights, kinds)
        ctx.kinds = kinds
        ctx.save_for_backward(x, *weights[::2], *(outputs if len(kinds) == len(outputs) else outputs[:-1]))
        return outputs[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Rows) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, saved, kinds, needed = grads[0].contiguous(), ctx.saved_tensors, ctx.kinds, ctx.needs_input_grad
        depth = (len(needed) - 2) // 2
        weights, inputs = saved[1 : 1 + depth], (saved[0], *saved[1 + depth :])
        weight_grads: list[Any] = [None] * 2 * depth
        for k in reversed(range(depth)):
            if k < len(kinds):
                grad = ACTIVATIONS[kinds[k]][2](grad, inputs[k + 1])
            if needed[2 + 2 * k]:
                weight_grads[2 * k : 2 * k + 2] = _linear_grads(grad, inputs[k])
            if k == 0 and not needed[1]:
                return None, None, *weight_grads
            fused = FUSED and len(grad) >= ROWS and min(weights[k].shape) >= NARROW
            grad = _product(grad, weights[k].t()) if fused else grad @ weights[k]
        return None, grad, *weight_grads


def plain_mlp(x: Rows, weights: Sequence[Tensor], kinds: Sequence[type[nn.Module]]) -> Rows:
    """x_{k+1} = f_k(x_k W_k' + b_k)."""
    for k, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        x = nn.functional.linear(x, weight, bias)
        x = kinds[k]()(x) if k < len(kinds) else x
    return x


@kernel(plain_mlp)
def mlp(x: Rows, weights: Sequence[Tensor], kinds: Sequence[type[nn.Module]]) -> Rows:
    """x_{k+1} = f_k(x_k W_k' + b_k) in float32 on a CPU, with a written-out gradient.

    Args:
        x: the input.
        weights: W_0, b_0, W_1, b_1, ...
        kinds: the activations' modules, one per layer or one less.
    """
    if torch.is_grad_enabled():
        outputs = [cast(Tensor, _Layers.apply(kinds, chunk, *weights)) for chunk in _chunks(x)]
    else:
        outputs = [_layer_outputs(chunk, weights, kinds)[-1] for chunk in _chunks(x)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def plain_tanh_mlp(weights: Sequence[Tensor]) -> Callable[[Rows], Rows]:
    """Return x -> W_n tanh(... tanh(W_0 x + b_0)) + b_n."""
    return partial(plain_mlp, weights=weights, kinds=[nn.Tanh] * (len(weights) // 2 - 1))


@kernel(plain_tanh_mlp)
def tanh_mlp(weights: Sequence[Tensor]) -> Callable[[Rows], Rows]:
    """Return x -> W_n tanh(... tanh(W_0 x + b_0)) + b_n, without gradient and with few calls, for few rows.

    tanh x = 2 sigmoid(2 x) - 1, whose factors and shift go into copies of the weights on either side.
    """
    pairs, folded = list(zip(weights[::2], weights[1::2], strict=True)), []
    for k, (weight, bias) in enumerate(pairs):
        weight, bias = (weight, bias) if k == 0 else (2 * weight, bias - weight.sum(1))
        inner = 2 if k < len(pairs) - 1 else 1
        folded.append(((inner * weight).t().contiguous(), inner * bias))

    def forward(x: Rows) -> Rows:
        for weight, bias in folded[:-1]:
            x = torch.addmm(bias, x, weight).sigmoid_()
        weight, bias = folded[-1]
        return torch.addmm(bias, x, weight)

    return forward


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
        return mlp(input, weights, tuple(map(type, layers[1::2])))

    def fold_weights(self) -> Callable[[Rows], Rows]:
        """Return the same function for as long as no weight changes, faster for the few rows of a rollout's step."""
        layers: list[Any] = list(self._modules.values())
        weights = [p.detach() for layer in layers[::2] for p in layer._parameters.values()]
        kinds = tuple(map(type, layers[1::2]))
        if {*kinds} != {nn.Tanh} or len(kinds) == len(weights) // 2 or weights[0].dtype != torch.float32:
            return self.forward
        folded = tanh_mlp(weights)
        return lambda x: self.forward(x) if len(x) >= ROWS else folded(x)


def build_mlp(
    widths: Sequence[int], gain: float, generator: torch.Generator, activation: type[nn.Module] = nn.Tanh
) -> Perceptron:
    """Build linear layers with an activation between them, orthogonal with gain sqrt(2), biases 0.

    Args:
        widths: of the input, the hidden layers and the output.
        gain: of the last layer.
        generator: draws the weights.
        activation: after every layer but the last.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        last = i == len(widths) - 2
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return Perceptron(*layers)
