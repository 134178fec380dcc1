"""Gate reward channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anypo.parts.ops.channels import channels
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.types import Trajectories


@register_part("score")
@dataclass(frozen=True)
class GateChannels:
    """Every channel counts only where the channel `on` passed (> 0.5). Source: GDPO, arXiv 2601.05242."""

    on: NonNegative[int] = 0

    def __call__(self, b: Trajectories) -> Trajectories:
        raw = channels(b)
        passed = raw[:, self.on : self.on + 1] > 0.5
        keep = passed | (torch.arange(raw.shape[1], device=raw.device) == self.on)
        return b.but(scores=torch.where(keep | raw.isnan().all(1, keepdim=True), raw, 0.0))
