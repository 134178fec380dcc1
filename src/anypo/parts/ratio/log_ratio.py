"""The log-ratio per token or per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anypo.parts.ops.log_ratio import log_ratio, row_mean
from anypo.parts.registry import register_part
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("ratio")
@dataclass(frozen=True)
class LogRatio:
    """x = log pi - log pi_anchor, per `token`; or one per `row`: the row's mean (geometric mean of the ratios) or sum.

    per: token | row. how (rows only): mean | sum, over the row's decisions (over `length` [N] of them where a row is given as
    one sum). anchor: old | ref | none, the log-probability itself. input: of log pi and of the reference, where it is another
    than the one of sampling: `plain` corrects rows that were sampled under a hint to the policy without it.
    Source: PPO, arXiv 1707.06347, eq. 6; row mean: GSPO, arXiv 2507.18071, eq. 7.
    """

    per: Literal["token", "row"] = "token"
    how: Literal["mean", "sum"] = "mean"
    anchor: Literal["old", "ref", "none"] = "old"
    input: Literal["plain"] | None = None

    @property
    def live(self) -> dict[str, View]:
        return {} if self.input is None else {"logp": View(input=self.input)}

    @property
    def level(self) -> Level:
        return "decision" if self.per == "token" else "row"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp",) if self.anchor == "none" else ("logp", f"logp_{self.anchor}")

    def __call__(self, b: Trajectories) -> Tensor:
        x = torch.where(b.valid, b.need("logp"), 0.0) if self.anchor == "none" else log_ratio(b, self.anchor)
        if self.per == "token":
            return x
        return row_mean(b, x) if self.how == "mean" else x.sum(1)
