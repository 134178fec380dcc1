"""Root-mean-square normalization with a backward pass of few operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from anypo.kernels import kernel


class RootMeanSquare(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^(-1/2), the mean over the last dimension.

        dx = r w g - r^3 x mean(w g x),  dw = sum g x r

    which is the gradient of layer normalization around 0, the term by which that moves its mean put back.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        x, weight, r = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:2], False]
        shape = x.shape[-1:]
        x_grad, weight_grad, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, torch.zeros_like(r), r, weight, None, needed
        )
        if x_grad is not None:
            x_grad += (grad @ weight)[..., None] * r / x.shape[-1]
        return x_grad, weight_grad, None


def recorded_rms_norm(
    x: Float[Tensor, "*row width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*row width"]:
    """y = w x (mean(x^2) + eps)^(-1/2), the mean over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@kernel(recorded_rms_norm)
def rms_norm(
    x: Float[Tensor, "*row width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*row width"]:
    """y = w x (mean(x^2) + eps)^(-1/2) with the gradient of `RootMeanSquare`."""
    return RootMeanSquare.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def _normalize(module: Any, x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """Compute what `module` gives for x."""
    if x.dtype == module.weight.dtype == torch.float32:
        return rms_norm(x, module.weight, cast(float, _eps(module)))
    return type(module).forward(module, x)


def find_norms(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the model that compute `rms_norm`, as tried on random numbers."""
    return [module for module in model.modules() if _eps(module) is not None and _agrees(module)]


@contextmanager
def fast_norms(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules of `find_norms` compute by `rms_norm` within a block."""
    changed = [module for module in modules if "forward" not in vars(module)]  # else an outer block has changed it
    for module in changed:
        module.forward = MethodType(_normalize, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@torch.no_grad()
def _agrees(module: Any) -> bool:
    named = dict(module.named_parameters())
    if named.keys() != {"weight"} or named["weight"].ndim != 1 or list(module.children()) or "forward" in vars(module):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, *named["weight"].shape, generator=generator).to(named["weight"].device) for n in (2, 1))
    y = functional_call(module, {"weight": weight[0]}, (x,))
    want = RootMeanSquare.apply(x, weight[0], _eps(module))
    return y.shape == x.shape and torch.allclose(y, want, rtol=1e-5, atol=1e-6)  # pyright: ignore
