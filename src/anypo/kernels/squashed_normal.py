"""The squashed normal sample and its log-probability with a written-out gradient."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anypo.kernels import kernel

LOG_PDF_CONSTANT = 2 * math.log(2) + 0.5 * math.log(2 * math.pi)
"""The constant of log N(u; mean, std) - log(1 - tanh(u)^2), per component."""


class _SquashedSample(torch.autograd.Function):
    """`squashed_sample` as one recorded operation instead of twenty small ones."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        spread = log_std.exp() * noise
        u = mean + spread
        action = u.tanh()
        ctx.save_for_backward(action, spread)
        each = 2 * (u + nn.functional.softplus(-2 * u)) - log_std - 0.5 * noise.square()
        return action, each.sum(-1) - LOG_PDF_CONSTANT * u.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        action, spread = ctx.saved_tensors
        of_action, of_logp = grads[0], grads[1].unsqueeze(-1)
        of_mean = of_action * (1 - action.square()) + 2 * of_logp * action
        return of_mean, of_mean * spread - of_logp, None


def plain_squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return a = tanh(u), u = mean + std noise; log pi(a) = sum_k [log N(u_k; mean_k, std_k) - 2 (log 2 - u_k - softplus(-2 u_k))]."""
    u = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return u.tanh(), (normal - 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))).sum(-1)


@kernel(plain_squashed_sample)
def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return a = tanh(mean + std noise) and log pi(a), with a written-out gradient."""
    return cast(tuple[Tensor, Tensor], _SquashedSample.apply(mean, log_std, noise))
