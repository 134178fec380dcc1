"""Divergences of denoising policies in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.masked import masked_mean
from anypo.parts.ops.segments import positive_scale, segment_sum, segments, squared_gap
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative, Share
from anypo.stages import Level, Reduce
from anypo.types import Trajectories
from anypo.views import Refresh, View


@register_part("terms")
@dataclass(frozen=True)
class MeanDivergence:
    """coef |m - m_ref|^2 h / (2 s^2): the divergence of Gaussian steps of equal standard deviation s in closed form, times the step's
    width h; |.|^2 is the mean over components.

    Source: Flow-GRPO, arXiv 2505.05470, eq. 12; h as in its code, whose sigma is s / sqrt(h).
    """

    coef: NonNegative[Number] = 0.04
    level: ClassVar[Level] = "decision"
    policy: ClassVar[str] = "flow"
    reads = ("step_mean", "step_mean_ref", "step_std", "step_width")
    live: ClassVar[dict[str, View]] = {"step_mean": View("step_mean")}
    views: ClassVar[dict[str, View]] = {
        "step_mean_ref": View("step_mean", of="ref"),
        "step_std": View("step_std"),
        "step_width": View("step_width"),
    }

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        weight = positive_scale(b, "step_width") / (2 * positive_scale(b, "step_std").square())
        kl = squared_gap(b, "step_mean", "ref") * weight
        return float(self.coef) * reduce(kl, b), {"mean_divergence": masked_mean(kl.detach(), b.mask)}


@register_part("terms")
@dataclass(frozen=True)
class ChainEntropy:
    """- coef * sum_k H_k / (K + 1) over the K decisions of a segment: the entropy of the chain, its start included, by the number of its
    terms. That of the start, a constant, is left out of the sum. Source: ReinFlow, arXiv 2505.22094; ReinFlow/ReinFlow, ppoflow.py.
    """

    coef: NonNegative[Number] = 0.03
    level: ClassVar[Level] = "segment"
    reads = ("entropy",)

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        (of, _), valid, entropy = segments(b), b.valid, b.need("entropy")
        count = segment_sum(torch.ones_like(entropy), of, valid).gather(1, of)
        return -float(self.coef) * reduce(torch.where(valid, entropy * count / (count + 1), 0.0), b), {}


@register_part("terms")
@dataclass(frozen=True)
class GuessDivergence:
    """coef |v - v_anchor|^2 at the draws of the matching loss, the mean over components. anchor: ref, or ema, which at the end of a
    batch keeps min(decay, ramp u) of itself after u updates. Source: AWM, arXiv 2509.25050; scxue/advantage_weighted_matching.
    """

    coef: NonNegative[Number] = 1.0
    anchor: Literal["ref", "ema"] = "ref"
    decay: Share[float] = 0.3
    ramp: NonNegative[float] | None = 0.001
    level: ClassVar[Level] = "decision"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("guess", f"guess_{self.anchor}")

    @property
    def live(self) -> dict[str, View]:
        return {"guess": View("guess")}

    @property
    def views(self) -> dict[str, View]:
        return {f"guess_{self.anchor}": View("guess", of=self.anchor)}

    @property
    def anchors(self) -> dict[str, Refresh]:
        return {"ema": Refresh(every=1, decay=self.decay, ramp=self.ramp, late=True)} if self.anchor == "ema" else {}

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        distance = squared_gap(b, "guess", self.anchor)
        return float(self.coef) * reduce(distance, b), {f"guess_{self.anchor}": masked_mean(distance.detach(), b.mask)}
