"""The squashed normal sample and its log-probability with a written-out gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SquashedSample(torch.autograd.Function):
    """tanh(u), u = mean + std noise, and its log-probability: twenty small recorded operations as one."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        spread = log_std.exp() * noise
        u = mean + spread
        action = u.tanh()
        ctx.save_for_backward(action, spread)
        constant = math.log(2) * 2 + 0.5 * math.log(2 * math.pi)
        each = 2 * (u + nn.functional.softplus(-2 * u)) - log_std - 0.5 * noise.square()
        return action, each.sum(-1) - constant * u.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        action, spread = ctx.saved_tensors
        of_action, of_logp = slopes[0], slopes[1].unsqueeze(-1)
        through = of_action * (1 - action.square()) + 2 * of_logp * action
        return through, through * spread - of_logp, None
