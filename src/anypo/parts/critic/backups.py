"""From the value at the next action to the target y, detached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.numbers import Number, number
from anypo.parts.ops.targets import backup
from anypo.parts.registry import describe, register_part
from anypo.ranges import NonNegative, Share
from anypo.types import Trajectories
from anypo.views import View


@register_part("backup")
@dataclass(frozen=True)
class OneStep:
    """y = r + gamma (1 - d) V(s'). Source: Watkins and Dayan, 1992."""

    gamma: Share[float] = 0.99

    def views(self, head: str, ahead: Any) -> dict[str, View]:
        return {}

    def __call__(self, b: Trajectories, head: str, after: Float[Tensor, "row step"]) -> Float[Tensor, "row step"]:
        return backup(b, after, self.gamma)


@register_part("backup")
@dataclass(frozen=True)
class SoftBackup(OneStep):
    """y = r + gamma (1 - d) (V(s') - alpha log pi(a'|s')), a' a sampled next action. Source: SAC, arXiv 1812.05905, eq. 5."""

    alpha: NonNegative[Number] = 0.0

    def views(self, head: str, ahead: Any) -> dict[str, View]:
        draw = getattr(ahead, "draw", None)
        if draw is None or draw.how != "sample":
            raise UsageError(f"a soft backup needs a sampled next action, `policy-sample`, not `{describe(ahead)}`")
        return {f"{head}_next_logp": View("logp", draw.of, at="next", draw=draw)}

    def __call__(self, b: Trajectories, head: str, after: Float[Tensor, "row step"]) -> Float[Tensor, "row step"]:
        return backup(b, after - number(self.alpha) * b.need(f"{head}_next_logp"), self.gamma)
