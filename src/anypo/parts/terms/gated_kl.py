"""A KL penalty gated by entropy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from anypo.numbers import Number
from anypo.parts.knobs.controllers import KlController
from anypo.parts.ops.averages import token_mean
from anypo.parts.ops.log_ratio import log_ratio
from anypo.parts.registry import register_part
from anypo.ranges import Finite
from anypo.stages import Level, Reduce
from anypo.types import Trajectories


@register_part("terms")
@dataclass(frozen=True)
class EntropyGatedKl:
    """0 while Ks = 0.9 Ks_before + 0.1 K stays below the threshold, else 0.1 (Ks - threshold)^2 max(0.5, 2 / (H + 0.1)).

    K: token-mean of log pi - log pi_ref, with gradient; H: token-mean entropy, without. detached: K without gradient too, as in
    the released code, where the penalty therefore moves nothing. Source: SAFE, ryyzn9/SAFE, controllers/entropy_aware.py.
    """

    threshold: Finite[Number] = field(default_factory=KlController)
    detached: bool = False
    level: ClassVar[Level] = "batch"
    reads = ("logp", "logp_ref", "entropy")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        threshold = float(self.threshold)
        kl = token_mean(log_ratio(b, "ref"), b)
        kl = kl.detach() if self.detached else kl
        average = self.threshold.average if isinstance(self.threshold, KlController) else 0.0
        smooth = 0.9 * average + 0.1 * kl
        gate = (2.0 / (token_mean(b.need("entropy").detach(), b) + 0.1)).clamp(min=0.5)
        penalty = 0.1 * (smooth - threshold).relu().square() * gate * bool(b.valid.any())
        return penalty, {
            "kl_ref": kl.detach(),
            "kl_threshold": kl.new_tensor(threshold),
            "kl_penalty": penalty.detach(),
        }
