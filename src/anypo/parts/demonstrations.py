"""Parts for learning from demonstrations beside one's own samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.reduce import Mean
from anypo.parts.statistics import group_stats, scored
from anypo.stages import Level, Number, Reduce
from anypo.types import Trajectories


@register("terms")
@dataclass(frozen=True)
class Imitate:
    """coef * token-mean over the demonstrations of -phi log pi, with phi detached: 1, p (1 - p) or p, p = pi(decision).

    cutoff: decisions likelier than this teach nothing more. Source: CHORD, arXiv 2508.11408; phi = 1: HPT,
    arXiv 2509.04419.
    """

    coef: Number = 1.0
    phi: Literal["one", "uncertain", "likely"] = "one"
    cutoff: float = 1.0
    level: ClassVar[Level] = "decision"
    rows: ClassVar[str] = "expert"
    reads = ("logp",)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None
        taught = b.valid if b.get("expert_mask") is not None else torch.zeros_like(b.valid)
        p = b.logp.detach().clamp(max=0.0).exp()
        phi = {"one": torch.ones_like(p), "uncertain": p * (1 - p), "likely": p}[self.phi]
        logp = b.logp.clamp(max=math.log(self.cutoff)) if self.cutoff < 1 else b.logp
        loss = -Mean("token")(phi * logp, b.but(mask=taught))
        return float(self.coef) * loss, {"imitation_loss": loss.detach()}


@register("reduce")
@dataclass(frozen=True)
class Share(Mean):
    """coef times the mean: the weight of one's own samples beside other objectives."""

    coef: Number = 1.0

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row 1"]:
        return float(self.coef) * super().coefficients(b)


@register("credit")
@dataclass(frozen=True)
class GateBySuccess:
    """Per group: where the samples' mean score exceeds `above`, the samples teach, else the group's demonstrations do; the others
    lose their mask. Source: HPT, arXiv 2509.04419.
    """

    above: Number = 0.0
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        assert b.score is not None
        solved = group_stats(b.score, b.group)[1] > float(self.above)
        expert = b.get("expert_mask")
        keep = solved if expert is None else solved != (expert != 0)
        return b.but(mask=b.valid & keep.unsqueeze(1))
