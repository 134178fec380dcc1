"""The reference point of prospect-theoretic objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anypo.parts.registry import register_part
from anypo.types import Trajectories
from anypo.views import View


@register_part("credit")
@dataclass(frozen=True)
class ReferencePoint:
    """kl_shift [N] = max(0, batch mean of log pi - log pi_ref of mismatched answers), as the policy is before the update.

    `mismatched` [N]: log-probability (nats) of another prompt's answer after the row's prompt, `mismatched_ref` under the
    reference. Nothing is written where the policy cannot give them. Source: KTO, arXiv 2402.01306, sec. 4.2.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[dict[str, View]] = {
        "mismatched": View("mismatched", optional=True),
        "mismatched_ref": View("mismatched", of="ref", optional=True),
    }

    def __call__(self, b: Trajectories) -> Trajectories:
        now, ref = b.get("mismatched"), b.get("mismatched_ref")
        if now is None or ref is None:
            return b
        shift = (now - ref).detach().mean().clamp(min=0.0)
        return b.put({"kl_shift": shift.expand(len(now)).clone()})
