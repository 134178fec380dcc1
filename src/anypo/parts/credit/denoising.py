"""Credit of actions that several decisions lead to, denoising steps above all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anypo.numbers import Number
from anypo.parts.credit.returns import Gae
from anypo.parts.ops.outcomes import rewarded
from anypo.parts.ops.segments import segment_sum, segments
from anypo.parts.registry import register_part
from anypo.types import Trajectories


@register_part("credit")
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
class DenoisingDiscount:
    """A_i <- gamma^(n - 1 - i) A_i for the i-th of the n decisions of a segment: the noisier a step, the less it is credited. Also
    writes `denoised` = i / (n - 1) [N, T], 1 in a segment of one. Source: DPPO, arXiv 2409.00588, sec. 4.3.
    """

    gamma: Number = 0.99
    reads = ("advantage",)

    def __call__(self, b: Trajectories) -> Trajectories:
        advantage = b.need("advantage")
        (of, _), valid, one = segments(b), b.valid, torch.ones_like(advantage)
        count = segment_sum(one, of, valid)
        before = torch.cat([torch.zeros_like(count[:, :1]), count.cumsum(1)[:, :-1]], 1)
        i = valid.to(one.dtype).cumsum(1) - 1 - before.gather(1, of)
        n = count.gather(1, of)
        denoised = torch.where(n > 1, i / (n - 1).clamp(min=1), 1.0)
        a = advantage * float(self.gamma) ** (n - 1 - i)
        return b.but(advantage=torch.where(valid, a, 0.0)).put({"denoised": torch.where(valid, denoised, 0.0)})
