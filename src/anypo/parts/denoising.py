"""Parts for actions that several decisions lead to, denoising steps above all. The decisions of one action are a segment of the
row; without `segment` every decision is an action of its own. Fields with components, [N, T, A], may also be plain numbers, [N, T]."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.credit import Gae
from anypo.parts.ratio import log_ratio
from anypo.parts.reduce import Mean
from anypo.parts.statistics import group_stats, masked_mean, ratio, rewarded, scored
from anypo.parts.trust import share
from anypo.stages import Level, Number, Pool, Reduce, Refresh, View, Want
from anypo.types import Request, Trajectories

# -------------------------------------------------------------------- segments and fields with components


def segments(b: Trajectories) -> tuple[Int[Tensor, "row step"], Bool[Tensor, "row step"]]:
    """For every valid decision the number of its segment within the row, from 0, and whether it is the segment's first."""
    valid = b.valid
    place = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    name = place if b.segment is None else b.segment
    last = torch.where(valid, place, -1).cummax(1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)
    first = valid & ((before < 0) | (name != name.gather(1, before.clamp(min=0))))
    return (first.cumsum(1) - 1).clamp(min=0), first


def segment_sum(
    x: Float[Tensor, "row step"], of: Int[Tensor, "row step"], mask: Bool[Tensor, "row step"]
) -> Float[Tensor, "row segment"]:
    """Sum of x over the marked decisions of every segment."""
    return x.new_zeros(len(x), int(of.max()) + 1).scatter_add(1, of, torch.where(mask, x, 0.0))


def gap(b: Trajectories, name: str, anchor: str) -> Float[Tensor, "row step"]:
    """Mean over components of the squared difference between a field and the same of an anchor; 0 under the mask."""
    x, y = b.get(name), b.get(f"{name}_{anchor}")
    valid = b.valid if x.ndim == 2 else b.valid.unsqueeze(2)
    squared = (torch.where(valid, x, 0.0) - torch.where(valid, y, 0.0).detach()).square()
    return squared if x.ndim == 2 else squared.mean(2)


def scale_of(b: Trajectories, name: str) -> Float[Tensor, "row step"]:
    """A positive field, 1 under the mask, so that dividing by it does no harm there."""
    return torch.where(b.valid, b.get(name), 1.0).detach()


# -------------------------------------------------------------------- collect and credit


@register("collect")
@dataclass(frozen=True)
class OnlyDemonstrations:
    """The task's demonstrations for the starts drawn, as the rows to learn from; the policy acts only when it is measured."""

    requests: int | None = None
    samples: int | None = None

    def __call__(self, pool: Pool, want: Want) -> Generator[list[Request], Trajectories, Trajectories]:
        drawn = pool.draw(want.requests, want.samples, want.horizon)
        rows = yield [Request(r.start, r.samples, expert=True) for r in drawn]
        return rows.but(expert_mask=None, score=None, scores=None)


@register("credit")
@dataclass(frozen=True)
class SegmentGae:
    """`Gae` with segments as its decisions: the reward of a segment is the sum of its own, its value that at its first decision;
    every decision has the advantage and return of its segment. Source: DPPO, arXiv 2409.00588, sec. 4.
    """

    gamma: Number = 0.99
    lam: Number = 0.95
    reads = ("value",)
    bootstraps = True

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        assert b.reward is not None and b.value is not None
        (of, first), valid, value = segments(b), b.valid, b.value.detach()
        whole = Trajectories(
            reward=segment_sum(b.reward, of, valid),
            value=segment_sum(value, of, first),
            mask=segment_sum(torch.ones_like(value), of, first) > 0,
            bootstrap=b.bootstrap,
            done=b.done,
        )
        found = Gae(self.gamma, self.lam)(whole)
        assert found.advantage is not None and found.returns is not None
        advantage, returns = (torch.where(valid, x.gather(1, of), 0.0) for x in (found.advantage, found.returns))
        return b.but(advantage=advantage, returns=returns, value_old=value)


@register("credit")
@dataclass(frozen=True)
class DenoisingDiscount:
    """A_i <- gamma^(n - 1 - i) A_i for the i-th of the n decisions of a segment: the noisier a step, the less it is credited. Also
    writes `denoised` = i / (n - 1) [N, T], 1 in a segment of one. Source: DPPO, arXiv 2409.00588, sec. 4.3.
    """

    gamma: Number = 0.99
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        assert b.advantage is not None
        (of, _), valid, one = segments(b), b.valid, torch.ones_like(b.advantage)
        count = segment_sum(one, of, valid)
        before = torch.cat([torch.zeros_like(count[:, :1]), count.cumsum(1)[:, :-1]], 1)
        i = valid.to(one.dtype).cumsum(1) - 1 - before.gather(1, of)
        n = count.gather(1, of)
        denoised = torch.where(n > 1, i / (n - 1).clamp(min=1), 1.0)
        a = b.advantage * float(self.gamma) ** (n - 1 - i)
        return b.but(advantage=torch.where(valid, a, 0.0)).put({"denoised": torch.where(valid, denoised, 0.0)})


@register("credit")
@dataclass(frozen=True)
class BatchScale:
    """A <- A / (std + eps), the standard deviation of the scores over the whole batch, so that groups of like difficulty weigh
    alike. Source: Flow-GRPO, arXiv 2505.05470 (`global_std` of its code).
    """

    eps: float = 1e-4
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        assert b.advantage is not None
        score = scored(b).score
        assert score is not None
        return b.but(advantage=b.advantage / (group_stats(score, None)[2].unsqueeze(1) + self.eps))


@register("credit")
@dataclass(frozen=True)
class LimitAdvantage:
    """A <- unit * clip(A, -limit, limit) / limit, with unit = limit where none is given.

    Source: DDPO, arXiv 2305.13301 (its code); unit 1: AWM, arXiv 2509.25050.
    """

    limit: float = 5.0
    unit: float | None = None
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        assert b.advantage is not None
        unit = self.limit if self.unit is None else self.unit
        return b.but(advantage=b.advantage.clamp(-self.limit, self.limit) * (unit / self.limit))


# -------------------------------------------------------------------- ratio and trust


@register("ratio")
@dataclass(frozen=True)
class ChainRatio:
    """x = clip(l, -limit, limit) - clip(l_old, -limit, limit), one for all decisions of a segment, with
    l = (log p(x_0) + sum_k log p(x_{k+1} | x_k)) / (K + 1) of its K decisions; log p(x_0), `logp_noise`, stands at the first.

    Source: ReinFlow, arXiv 2505.22094, and its code.
    """

    limit: Number = 1.0
    level: ClassVar[Level] = "row"
    reads = ("logp", "logp_old", "logp_noise")
    views: ClassVar[dict[str, View]] = {"logp_noise": View("logp_noise")}

    def __call__(self, b: Trajectories) -> Tensor:
        (of, _), valid, limit = segments(b), b.valid, float(self.limit)
        assert b.logp is not None and b.logp_old is not None
        noise = b.get("logp_noise")
        terms = segment_sum(torch.ones_like(b.logp), of, valid) + 1
        now, old = (segment_sum(x + noise, of, valid) / terms for x in (b.logp, b.logp_old))
        x = now.clamp(-limit, limit) - old.clamp(-limit, limit)
        return torch.where(valid, x.gather(1, of), 0.0)


@register("ratio")
@dataclass(frozen=True)
class NormalisedRatio:
    """x = s (log pi - log pi_old + |m - m_old|^2 / (2 s^2)) for a Gaussian step of mean m and standard deviation s, |.|^2 the mean
    over components, as in log pi: what is left, m - m_old times the noise, is centred and does not depend on s.

    Source: GRPO-Guard, arXiv 2510.22319.
    """

    level: ClassVar[Level] = "decision"
    reads = ("logp", "logp_old", "step_mean", "step_mean_old", "step_std")
    live: ClassVar[dict[str, View]] = {"step_mean": View("step_mean")}
    views: ClassVar[dict[str, View]] = {"step_mean_old": View("step_mean"), "step_std": View("step_std")}

    def __call__(self, b: Trajectories) -> Tensor:
        s = scale_of(b, "step_std")
        return torch.where(b.valid, s * log_ratio(b) + gap(b, "step_mean", "old") / (2 * s), 0.0)


@register("ratio")
@dataclass(frozen=True)
class MatchingRatio:
    """x = l - l_old with l = -g(L), L the flow-matching loss of the action at the decision's own draw (time, noise), which stands in
    for the log-probability. l_old is the same with the weights the update began with.

    per: `draw`, or the mean over the draws of an action (`segment`). limit: |x| at most, before and after that mean.
    weighting: g(L) = L (`uniform`) or t ((L + 1e-10)^power - 1e-10^power) / power (`ghuber`), t the share of noise in the draw.
    Source: FPO, arXiv 2507.21053; weighting: AWM, arXiv 2509.25050.
    """

    per: Literal["draw", "segment"] = "segment"
    limit: Number | None = 3.0
    weighting: Literal["uniform", "ghuber"] = "uniform"
    power: float = 0.25
    live: ClassVar[dict[str, View]] = {"logp": View("cfm")}

    @property
    def level(self) -> Level:
        return "decision" if self.per == "draw" else "row"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "logp_old") if self.weighting == "uniform" else ("logp", "logp_old", "noise_share")

    @property
    def views(self) -> dict[str, View]:
        found = {"logp_old": View("cfm")}
        return found if self.weighting == "uniform" else {**found, "noise_share": View("noise_share")}

    def pseudo(self, logp: Float[Tensor, "row step"], b: Trajectories) -> Float[Tensor, "row step"]:
        if self.weighting == "uniform":
            return logp
        power = (1e-10 - logp.clamp(max=0.0)).pow(self.power) - 1e-10**self.power
        return -b.get("noise_share") * power / self.power

    def __call__(self, b: Trajectories) -> Tensor:
        valid, limit = b.valid, math.inf if self.limit is None else float(self.limit)
        assert b.logp is not None and b.logp_old is not None
        x = torch.where(valid, self.pseudo(b.logp, b) - self.pseudo(b.logp_old, b), 0.0).clamp(-limit, limit)
        if self.per == "draw":
            return x
        of, _ = segments(b)
        mean = segment_sum(x, of, valid) / segment_sum(torch.ones_like(x), of, valid).clamp(min=1)
        return torch.where(valid, mean.clamp(-limit, limit).gather(1, of), 0.0)


@register("trust")
@dataclass(frozen=True)
class StepClip:
    """s = min(r A, clip(r, 1 - eps, 1 + eps) A) with eps = first + (last - first) (exp(c d) - 1) / (exp(c) - 1), d = `denoised` [N, T]
    from 0 at the noisiest step to 1 at the last. Source: DPPO, arXiv 2409.00588 (its code).
    """

    first: Number = 0.001
    last: Number = 0.01
    c: float = 3.0
    level: ClassVar[Level] = "decision"
    reads = ("advantage", "denoised")

    def __call__(self, x: Tensor, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.advantage is not None
        first, last = float(self.first), float(self.last)
        bend = torch.expm1(self.c * b.get("denoised").detach()) / math.expm1(self.c)
        eps, r, a = first + (last - first) * bend, ratio(x), b.advantage.detach()
        clipped = torch.maximum(torch.minimum(r, 1 + eps), 1 - eps) * a
        return torch.minimum(r * a, clipped), {"clip_fraction": share(clipped < r * a, b)}


@register("trust")
@dataclass(frozen=True)
class Matching:
    """s = -L, the matching loss of the row's action at the decision's draw: behaviour cloning, whatever the action was worth.

    loss: `denoising`, the squared error of the noise; `cfm`, of the velocity.
    Source: Diffusion Policy, arXiv 2303.04137; flow matching: arXiv 2210.02747.
    """

    loss: Literal["denoising", "cfm"] = "denoising"
    level: ClassVar[Level] = "decision"
    reads = ("logp",)
    uses_ratio = False

    @property
    def live(self) -> dict[str, View]:
        return {"logp": View(self.loss)}

    def __call__(self, x: Tensor | None, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        assert b.logp is not None
        return b.logp, {}


# -------------------------------------------------------------------- reduce and terms


@register("reduce")
@dataclass(frozen=True)
class PerWidth(Mean):
    """The mean with every decision divided by the width of its step, `step_width` [N, T], to which its gradient is proportional.

    Source: GRPO-Guard, arXiv 2510.22319.
    """

    views: ClassVar[dict[str, View]] = {"step_width": View("step_width")}

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, "step_width")

    def coefficients(self, b: Trajectories) -> Float[Tensor, "row step"]:
        return super().coefficients(b) / scale_of(b, "step_width")


@register("terms")
@dataclass(frozen=True)
class MeanDivergence:
    """coef |m - m_ref|^2 h / (2 s^2): the divergence of Gaussian steps of equal standard deviation s in closed form, times the step's
    width h; |.|^2 is the mean over components.

    Source: Flow-GRPO, arXiv 2505.05470, eq. 12; h as in its code, whose sigma is s / sqrt(h).
    """

    coef: Number = 0.04
    level: ClassVar[Level] = "decision"
    reads = ("step_mean", "step_mean_ref", "step_std", "step_width")
    live: ClassVar[dict[str, View]] = {"step_mean": View("step_mean")}
    views: ClassVar[dict[str, View]] = {
        "step_mean_ref": View("step_mean", of="ref"),
        "step_std": View("step_std"),
        "step_width": View("step_width"),
    }

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        weight = scale_of(b, "step_width") / (2 * scale_of(b, "step_std").square())
        kl = gap(b, "step_mean", "ref") * weight
        return float(self.coef) * reduce(kl, b), {"mean_divergence": masked_mean(kl.detach(), b.valid)}


@register("terms")
@dataclass(frozen=True)
class GuessDivergence:
    """coef |v - v_anchor|^2 at the draws of the matching loss, the mean over components. anchor: ref, or ema, whose share of itself
    kept per batch is `decay`. Source: AWM, arXiv 2509.25050.
    """

    coef: Number = 1.0
    anchor: Literal["ref", "ema"] = "ref"
    decay: float = 0.3
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
        return {"ema": Refresh(every=1, decay=self.decay)} if self.anchor == "ema" else {}

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        distance = gap(b, "guess", self.anchor)
        return float(self.coef) * reduce(distance, b), {f"guess_{self.anchor}": masked_mean(distance.detach(), b.valid)}
