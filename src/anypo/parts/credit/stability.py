"""A minibatch link that masks decisions whose own step would change the policy too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anypo.numbers import Number
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.stages import Level
from anypo.types import Trajectories
from anypo.views import View


@register_part("credit")
@dataclass(frozen=True)
class KeepStable:
    """Keep a decision iff m_F < kl and -gain < m_H < gain, its predicted change of policy and objective by the coming step:

        m_H = a A q + a^2/2 A (q^2 - s),  m_F = a^2/2 q^2

    q = v.G h (`step_along`) and s = u^T F u (`step_spread`) of the last layer, with G what the run's own optimizer makes of
    this decision's gradient alone, a the learning rate (`lr` [N]), A the advantage. Checked before every update; a batch
    without these fields is kept whole. Source: CAPO, arXiv 2510.00819, eq. 7 to 10.
    """

    kl: NonNegative[Number] = 1e-4
    gain: NonNegative[Number] = 1e-2
    level: ClassVar[Level] = "decision"
    when: ClassVar[str] = "minibatch"
    views: ClassVar[dict[str, View]] = {name: View(name) for name in ("step_along", "step_spread")}

    def __call__(self, b: Trajectories) -> Trajectories:
        along, spread = b.get("step_along"), b.get("step_spread")
        if along is None or spread is None or b.advantage is None:
            return b
        lr = b.get("lr").unsqueeze(1)
        change = b.advantage * (lr * along + lr**2 / 2 * (along.square() - spread))
        divergence = lr**2 / 2 * along.square()
        return b.but(mask=b.valid & (divergence < float(self.kl)) & (change.abs() < float(self.gain)))
