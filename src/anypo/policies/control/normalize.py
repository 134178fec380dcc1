"""Centre and scale observations, by running statistics or by those of a data set."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Centre and scale by running mean and variance: clip((x - mean) / sqrt(var + 1e-8), -10, 10).

    The statistics are float64 buffers, part of checkpoints, and change only in `update`. Before the first update the
    input is only clipped.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def scale(self) -> Float[Tensor, " dim"]:
        """1 / standard deviation."""
        return (self.var + 1e-8).rsqrt_()

    def forward(self, x: Shaped[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return normalized_obs(x, self.mean, self.scale)

    @torch.no_grad()
    def update(self, x: Shaped[Tensor, "sample dim"]) -> None:
        """Merge the samples into the statistics (Chan, Golub and LeVeque 1979); population variance."""
        n = len(x)
        if n == 0:
            return
        x = x.double()
        total = self.count + n
        delta = x.mean(0) - self.mean
        squares = self.var * self.count + x.var(0, correction=0) * n + delta**2 * (self.count * n / total)
        self.mean += delta * (n / total)
        self.var.copy_(squares / total)
        self.count.copy_(total)


class DatasetNorm(nn.Module):
    """Centre and scale by the mean and standard deviation of a data set: (x - mean) / (std + 1e-3), without a clip.

    The statistics are float64 buffers, part of checkpoints; before `fit` the input passes unchanged. Source: TD3+BC, arXiv
    2106.06860, sec. 5; sfujim/TD3_BC, utils.py.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))

    def forward(self, x: Shaped[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return (x - self.mean) * self.scale

    @torch.no_grad()
    def fit(self, x: Shaped[Tensor, "sample dim"]) -> None:
        """Take the statistics of the samples; population standard deviation."""
        x = x.double()
        self.mean.copy_(x.mean(0))
        self.scale.copy_(1 / (x.std(0, correction=0) + 1e-3))


def normalized_obs(x: Shaped[Tensor, "*batch dim"], mean: Tensor, scale: Tensor) -> Float[Tensor, "*batch dim"]:
    """y = clip((x - mean) scale, -10, 10)"""
    return (x - mean).mul_(scale).clamp_(-10, 10)
