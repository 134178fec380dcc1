"""A further objective beside the main one, made of the same parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.method.filling import merge_declared
from anypo.numbers import Number
from anypo.parts.ops.settings import with_pieces
from anypo.parts.reduce import Mean
from anypo.parts.registry import describe, register_part
from anypo.parts.trust import SelfWeightedLikelihood
from anypo.ranges import NonNegative
from anypo.stages import LEVELS, Level, Reduce, declared
from anypo.types import Trajectories
from anypo.views import Network, Refresh, View

IMITATION, TOKEN_MEAN = SelfWeightedLikelihood(), Mean("token")


@register_part("terms")
@dataclass(frozen=True)
class Term:
    """loss = -coef * reduce(trust(ratio)) on the rows of one source, with a denominator of its own; as it stands, -mean log pi of
    demonstrations.

    ratio, trust, reduce: parts of these stages; without a reduce the method's own averages. rows: a source (`expert`, `pairs`,
    `replay`, ...), or `own`: what the main objective learns from. A batch without such rows has no such term.
    Source: CHORD, arXiv 2508.11408: two objectives, each averaged over the rows of its own source.
    """

    ratio: Any = None
    trust: Any = IMITATION
    reduce: Any = TOKEN_MEAN
    rows: str = "expert"
    coef: NonNegative[Number] = 1.0
    pieces: ClassVar[tuple[str, ...]] = ("ratio", "trust", "reduce")

    def __post_init__(self) -> None:
        if self.ratio is None and declared(self.trust, "uses_ratio"):
            raise UsageError(f"the trust part of a term ({describe(self.trust)}) needs a ratio, and the term has none")

    @property
    def parts(self) -> tuple[Any, ...]:
        return tuple(with_pieces(self))[1:]

    @property
    def level(self) -> Level:
        return max((declared(part, "level") for part in self.parts), key=LEVELS.index)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in declared(part, "reads")))

    @property
    def views(self) -> dict[str, View]:
        return merge_declared(self.parts, "views")

    @property
    def live(self) -> dict[str, View]:
        return merge_declared(self.parts, "live")

    @property
    def anchors(self) -> dict[str, Refresh]:
        return merge_declared(self.parts, "anchors")

    @property
    def networks(self) -> dict[str, Network]:
        return merge_declared(self.parts, "networks")

    def __call__(self, b: Trajectories, reduce: Reduce) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        x = None if self.ratio is None else self.ratio(b)
        s, metrics = self.trust(x, b)
        loss = -(self.reduce or reduce)(s, b)
        return float(self.coef) * loss, {
            f"{self.rows}_{name}": m for name, m in {"loss": loss.detach(), **metrics}.items()
        }
