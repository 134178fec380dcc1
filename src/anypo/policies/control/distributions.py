"""Action distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.errors import RunError
from anypo.kernels.squashed_normal import squashed_sample
from anypo.rng import Rng
from anypo.types import MASK


class Squashed:
    """a = tanh(u), u ~ N(mean, std^2): log pi(a) = sum_k [log N(u_k) - 2 (log 2 - u_k - softplus(-2 u_k))].

    Source: SAC, arXiv 1812.05905, appendix C. Actions are clamped to 1e-6 inside (-1, 1) before their logp is computed.
    """

    def __init__(self, mean: Float[Tensor, "*decision component"], log_std: Float[Tensor, "*decision component"]):
        self.mean, self.log_std = mean, log_std

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the action of standard normal noise, differentiable, and its log-probability."""
        return squashed_sample(self.mean, self.log_std, noise)

    def sample(self, rng: Rng) -> Tensor:
        noise = rng.randn(*self.mean.shape[1:]).to(self.mean.dtype)
        return (self.mean + self.log_std.exp() * noise).tanh()

    def mode(self) -> Tensor:
        return self.mean.tanh()

    def logp(self, action: Tensor) -> Tensor:
        u = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        return self._logp(u, (u - self.mean) * (-self.log_std).exp())

    def _logp(self, u: Tensor, noise: Tensor) -> Tensor:
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (normal - 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))).sum(-1)


class Dirac:
    """All mass on one action."""

    def __init__(self, action: Float[Tensor, "*decision component"]):
        self.action = action

    def mode(self) -> Tensor:
        return self.action

    def sample(self, rng: Rng) -> Tensor:
        return self.action

    def logp(self, action: Tensor) -> Tensor:
        return torch.zeros_like(action[..., 0])


class Mixture:
    """Weights [.., E] (as logarithms) and squashed Gaussians [.., E, A]."""

    def __init__(self, gate: Tensor, parts: Squashed):
        self.gate, self.parts = gate, parts

    def _select(self, which: Tensor, action: Tensor) -> Tensor:
        index = which[..., None, None].expand(*which.shape, 1, action.shape[-1])
        return action.gather(-2, index).squeeze(-2)

    def mode(self) -> Tensor:
        return self._select(self.gate.argmax(-1), self.parts.mode())

    def sample(self, rng: Rng) -> Tensor:
        which = (self.gate.exp() / rng.exponential(self.gate.shape[-1])).argmax(-1)
        return self._select(which, self.parts.sample(rng))

    def logp(self, action: Tensor) -> Tensor:
        return (self.gate + self.parts.logp(action.unsqueeze(-2))).logsumexp(-1)


class Choice:
    """All mass on the choice of the largest value."""

    def __init__(self, values: Float[Tensor, "*decision choice"]):
        self.values = values

    def mode(self) -> Tensor:
        return self.values.argmax(-1, keepdim=True)

    def sample(self, rng: Rng) -> Tensor:
        return self.mode()

    def logp(self, action: Tensor) -> Tensor:
        return torch.zeros_like(action[..., 0], dtype=self.values.dtype)


class Categoricals:
    """Independent categoricals over `sizes` choices each, from unnormalised logits [M, sum(sizes)].

    A choice the mask forbids has probability exactly 0 and adds nothing to the entropy.
    """

    def __init__(
        self,
        logits: Float[Tensor, "*decision choice"],
        sizes: Sequence[int],
        mask: Bool[Tensor, "*decision choice"] | None = None,
    ):
        if mask is not None:
            logits = torch.where(mask, logits, -torch.inf)
        parts = (logits,) if len(sizes) == 1 else logits.split(list(sizes), -1)
        self.logps = [x.log_softmax(-1) for x in parts]

    def sample(self, rng: Rng) -> Int[Tensor, "*decision component"]:
        """Sample the choice with the smallest exponential number, rates p: as torch.multinomial does, without its checks."""
        return self.from_noise(exponential_noise([x.shape[-1] for x in self.logps], rng))

    def from_noise(self, noise: Float[Tensor, "*decision choice"]) -> Int[Tensor, "*decision component"]:
        """Return the sample as a function of standard exponential numbers."""
        parts = (noise,) if len(self.logps) == 1 else noise.split([x.shape[-1] for x in self.logps], -1)
        choices = [(x.exp() / part).argmax(-1, keepdim=True) for x, part in zip(self.logps, parts, strict=True)]
        return _concat(choices)

    def mode(self) -> Int[Tensor, "*decision component"]:
        return torch.stack([x.argmax(-1) for x in self.logps], -1)

    def logp(self, action: Int[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        if len(self.logps) == 1:
            return self.logps[0].gather(-1, action).squeeze(-1)
        taken = [x.gather(-1, a) for x, a in zip(self.logps, action.split(1, -1), strict=True)]
        return torch.cat(taken, -1).sum(-1)

    def score_norm(self, action: Int[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        """|d log p(action) / d logits|^2 = 1 - 2 p(a) + sum_v p(v)^2, summed over the components."""
        each = [
            1 - 2 * x.gather(-1, a).exp().squeeze(-1) + (2 * x).exp().sum(-1)
            for x, a in zip(self.logps, action.split(1, -1), strict=True)
        ]
        return torch.stack(each, -1).sum(-1)

    def entropy(self) -> Float[Tensor, "*decision"]:
        each = [-(x.exp() * x.masked_fill(x == -torch.inf, 0)).sum(-1) for x in self.logps]
        return torch.stack(each, -1).sum(-1)


def require_choice(mask: Bool[Tensor, "decision choice"], sizes: Sequence[int]) -> None:
    """Raise RunError for a decision of which a component has no choice left."""
    empty = ~torch.stack([part.any(-1) for part in mask.split(list(sizes), -1)], -1).all(-1)
    if empty.any():
        raise RunError(f"{MASK} forbids every action in row {int(empty.nonzero()[0])}; allow at least one")


def uniform_choices(
    uniform: Float[Tensor, "decision component"], sizes: Sequence[int], mask: Bool[Tensor, "decision choice"] | None
) -> Int[Tensor, "decision component"]:
    """Map uniform numbers in [0, 1) to equally probable choices.

    Args:
        uniform: one number per component.
        sizes: choices of every component.
        mask: allowed choices; None: all.
    """
    if mask is None:
        return (uniform * torch.tensor(sizes)).long()
    columns = []
    for u, allowed in zip(uniform.unbind(-1), mask.split(list(sizes), -1), strict=True):
        rank = (u * allowed.sum(-1)).long()
        columns.append((allowed.cumsum(-1) > rank.unsqueeze(-1)).int().argmax(-1))
    return torch.stack(columns, -1)


def exponential_noise(sizes: Sequence[int], rng: Rng) -> Float[Tensor, "row choice"]:
    """Draw standard exponential numbers for every choice of every component.

    Args:
        sizes: choices of every component.
        rng: draws them.
    """
    return _concat([rng.exponential(size) for size in sizes])


def _concat(columns: list[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


class Gaussian:
    """Diagonal Gaussian with mean [M, A] and state-independent log standard deviation [A]."""

    def __init__(self, mean: Float[Tensor, "*decision component"], log_std: Float[Tensor, " component"]):
        self.mean, self.log_std = mean, log_std

    def sample(self, rng: Rng) -> Float[Tensor, "*decision component"]:
        return self.from_noise(rng.randn(*self.mean.shape[1:]).to(self.mean.dtype))

    def from_noise(self, noise: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision component"]:
        """Return the sample as a function of standard normal numbers."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Float[Tensor, "*decision component"]:
        return self.mean

    def logp(self, action: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def score_norm(self, action: Float[Tensor, "*decision component"]) -> Float[Tensor, "*decision"]:
        """|d log p(action) / d mean|^2."""
        return ((action - self.mean) * torch.exp(-2 * self.log_std)).square().sum(-1)

    def entropy(self) -> Float[Tensor, "*decision"]:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(self.mean))
