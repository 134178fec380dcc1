"""Objectives on single rows marked desirable or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.pairs import ranks
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories


@register_part("trust")
@dataclass(frozen=True)
class ProspectValue:
    """Per row -lam (1 - sigma(+-beta (x - z0))): + for preferred rows, - for the others; z0 is the reference point, `kl_shift`.

    Without it z0 = 0. Rows are preferred by their mark, or where their score exceeds 0.5.
    Source: KTO, arXiv 2402.01306.
    """

    beta: NonNegative[Number] = 0.1
    gain: NonNegative[Number] = 1.0
    loss: NonNegative[Number] = 1.0
    level: ClassVar[Level] = "row"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        good, shift = ranks(b) > 0.5, b.get("kl_shift")
        z = float(self.beta) * (x - (0.0 if shift is None else shift.detach()))
        lam = torch.where(good, float(self.gain), float(self.loss)).to(x.dtype)
        metrics = {"desirable": good.to(x.dtype).sum() / max(len(x), 1)}
        if shift is not None:
            metrics["kl_shift"] = shift.detach().sum() / max(len(x), 1)
        return -lam * (1 - torch.where(good, z, -z).sigmoid()), metrics
