"""Advantages from Q-functions."""

from __future__ import annotations

from dataclasses import dataclass

from anypo.numbers import Number, number
from anypo.parts.registry import register_part
from anypo.ranges import NonNegative
from anypo.types import Trajectories
from anypo.views import Draw, View


@register_part("credit")
@dataclass(frozen=True)
class Advantage:
    """A = beta (min_i Q_i(s, a) - V(s)), V(s) the network v, or (`drawn`) min_i Q_i at the policy's own sampled action.

    Q is the target's for v, as in IQL, arXiv 2110.06169, eq. 7; the present one otherwise, AWAC, arXiv 2006.09359, eq. 13.
    """

    beta: NonNegative[Number] = 3.0
    drawn: bool = False

    @property
    def views(self) -> dict[str, View]:
        if self.drawn:
            return {"q_now": View("q"), "q_drawn": View("q", draw=Draw())}
        return {"q_taken": View("q", "target"), "v_now": View("v")}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.views)

    def __call__(self, b: Trajectories) -> Trajectories:
        if self.drawn:
            gap = b.need("q_now").min(-1).values - b.need("q_drawn").min(-1).values
        else:
            gap = b.need("q_taken").min(-1).values - b.need("v_now")
        return b.but(advantage=number(self.beta) * gap)
