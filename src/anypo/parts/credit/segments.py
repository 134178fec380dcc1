"""Credit within a row: segments of decisions (steps, turns) share the outcome unequally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.ranges import Finite, NonNegative
from anypo.types import Trajectories
from anypo.views import View


@register_part("credit")
@dataclass(frozen=True)
class EntropyModulate:
    """A_step = A g + zeta f_next, minus its mean over all steps of the batch; for every decision of the step.

    g = exp(-k Hn) / mean exp(-k Hn), f = exp(-k_next Hn) of the step that follows in the row (none after the last). Hn is the
    mean entropy of the step's decisions, scaled to [0, 1] over the batch. A row without `segment` is one step.
    Source: EMPG, arXiv 2509.09265, eq. 6 to 8.
    """

    k: NonNegative[Number] = 1.0
    k_next: NonNegative[Number] = 1.0
    zeta: Finite[Number] = 0.05
    reads = ("advantage", "entropy")

    def __call__(self, b: Trajectories) -> Trajectories:
        advantage = b.need("advantage")
        valid = b.valid
        if not bool(valid.any()):
            return b
        row = valid.nonzero()[:, 0]
        segment = torch.zeros_like(row) if b.segment is None else b.segment[valid].long()
        steps, of = torch.unique(torch.stack([row, segment]), dim=1, return_inverse=True)
        h = _mean(b.need("entropy").detach()[valid], of)
        a = _mean(advantage[valid], of)
        h = (h - h.min()) / (h.max() - h.min() + 1e-8)
        gain = (-float(self.k) * h).exp()
        clear = (-float(self.k_next) * h).exp()
        follows = torch.cat([steps[0, 1:] == steps[0, :-1], steps.new_zeros(1, dtype=torch.bool)])
        bonus = torch.where(follows, clear.roll(-1), 0.0)
        modulated = a * gain / gain.mean() + float(self.zeta) * bonus
        modulated = modulated - modulated.mean()
        return b.but(advantage=torch.zeros_like(advantage).masked_scatter(valid, modulated[of]))


def _mean(x: Tensor, of: Tensor) -> Tensor:
    """Mean of x over the entries with the same index."""
    total = x.new_zeros(int(of.max()) + 1).index_add_(0, of, x)
    return total / torch.zeros_like(total).index_add_(0, of, torch.ones_like(x))


@register_part("credit")
@dataclass(frozen=True)
class AddProgress:
    """A_t + alpha reward_t, where the reward is the gain in belief in the right answer over the decision's segment, measured by
    the policy itself (`progress`); a batch without rewards gains nothing. Source: GRPO-VPS, arXiv 2604.20659.
    """

    alpha: NonNegative[Number] = 1.0
    views: ClassVar[dict[str, View]] = {"reward": View("progress")}
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        if b.reward is None:
            return b
        return b.but(advantage=b.need("advantage") + float(self.alpha) * b.reward.detach())
