"""Credit of actions that several decisions lead to, denoising steps above all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.credit.returns import Gae
from anypo.parts.ops.outcomes import rewarded
from anypo.parts.ops.segments import segment_sum, segments
from anypo.parts.registry import register_part
from anypo.ranges import Share
from anypo.types import Trajectories


@register_part("credit")
@dataclass(frozen=True)
class SegmentGae:
    """`Gae` with segments as its decisions: the reward of a segment is the sum of its own, its value that at its first decision;
    every decision has the advantage and return of its segment. Source: DPPO, arXiv 2409.00588, sec. 4.
    """

    gamma: Share[Number] = 0.99
    lam: Share[Number] = 0.95
    reads = ("value",)
    bootstraps = True

    def __call__(self, b: Trajectories) -> Trajectories:
        b = rewarded(b)
        (of, first), valid, value = segments(b), b.valid, b.need("value").detach()
        whole = Trajectories(
            reward=segment_sum(b.need("reward"), of, valid),
            value=segment_sum(value, of, first),
            mask=segment_sum(torch.ones_like(value), of, first) > 0,
            bootstrap=b.bootstrap,
            done=b.done,
        )
        gae = Gae(self.gamma, self.lam)(whole)
        advantage, returns = (
            torch.where(valid, x.gather(1, of), 0.0) for x in (gae.need("advantage"), gae.need("returns"))
        )
        return b.but(advantage=advantage, returns=returns, value_old=value)


@register_part("credit")
@dataclass(frozen=True)
class FirstSteps:
    """mask = 1[i < floor(share n)] for the i-th of the n decisions of a segment: the last are not trained; one is, at least.

    Source: Flow-GRPO, yifan123/flow_grpo, config/grpo.py (`timestep_fraction`).
    """

    share: Share[float] = 0.99
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        i, n = place_in_segment(b)
        return b.but(mask=b.valid & (i < (self.share * n).floor().clamp(min=1)))


@register_part("credit")
@dataclass(frozen=True)
class DenoisingDiscount:
    """A_i <- gamma^(n - 1 - i) A_i for the i-th of the n decisions of a segment: the noisier a step, the less it is credited. Also
    writes `denoised` = i / (n - 1) [N, T], 1 in a segment of one. Source: DPPO, arXiv 2409.00588, sec. 4.3.
    """

    gamma: Share[Number] = 0.99
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        advantage, valid = b.need("advantage"), b.valid
        i, n = place_in_segment(b)
        denoised = torch.where(n > 1, i / (n - 1).clamp(min=1), 1.0)
        a = advantage * float(self.gamma) ** (n - 1 - i)
        return b.but(advantage=torch.where(valid, a, 0.0)).put({"denoised": torch.where(valid, denoised, 0.0)})


def place_in_segment(b: Trajectories) -> tuple[Float[Tensor, "row step"], Float[Tensor, "row step"]]:
    """Return for every valid decision its number i within its segment, from 0, and the number n of the segment's decisions."""
    (of, _), valid = segments(b), b.valid
    one = valid.to(b.need("advantage").dtype)
    count = segment_sum(one, of, valid)
    before = torch.cat([torch.zeros_like(count[:, :1]), count.cumsum(1)[:, :-1]], 1)
    return one.cumsum(1) - 1 - before.gather(1, of), count.gather(1, of)
