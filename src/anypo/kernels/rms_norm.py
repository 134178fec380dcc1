"""Root-mean-square normalization with a backward pass of few operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

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
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = slopes
        x, weight, r = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        shape = x.shape[-1:]
        to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            slope, x, shape, torch.zeros_like(r), r, weight, None, wanted
        )
        if to_x is not None:
            to_x += (slope @ weight)[..., None] * r / x.shape[-1]
        return to_x, to_weight, None


def plain_rms_norm(x: Float[Tensor, "*some width"], weight: Float[Tensor, " width"], eps: float) -> Tensor:
    """y = w x (mean(x^2) + eps)^(-1/2), the mean over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@kernel(plain_rms_norm)
def rms_norm(x: Float[Tensor, "*some width"], weight: Float[Tensor, " width"], eps: float) -> Tensor:
    """y = w x (mean(x^2) + eps)^(-1/2) with a written-out gradient, see `RootMeanSquare`."""
    return RootMeanSquare.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def normalized(module: Any, x: Float[Tensor, "*some width"]) -> Float[Tensor, "*some width"]:
    """What `module` gives for x."""
    if x.dtype == module.weight.dtype == torch.float32:
        return rms_norm(x, module.weight, _eps(module))  # pyright: ignore[reportArgumentType]
    return type(module).forward(module, x)


def norms(model: nn.Module) -> list[nn.Module]:
    """The modules of the model that compute `RootMeanSquare`, as tried on random numbers."""
    return [module for module in model.modules() if _eps(module) is not None and _agrees(module)]


@contextmanager
def normalizing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these modules of `norms` compute by `normalized`."""
    changed = [module for module in modules if "forward" not in vars(module)]  # else it is inside already
    for module in changed:
        module.forward = MethodType(normalized, module)
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
    found = functional_call(module, {"weight": weight[0]}, (x,))
    want = RootMeanSquare.apply(x, weight[0], _eps(module))
    return found.shape == x.shape and torch.allclose(found, want, rtol=1e-5, atol=1e-6)  # pyright: ignore
