"""Card, claim and reduction: where a method or procedure comes from, what it says and how it is tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from anypo.errors import UsageError


@dataclass(frozen=True)
class Claim:
    """An experiment that can fail, stated before it is run.

    text: what is expected, in one sentence. experiment: its name in the laboratory; settings: of that experiment.
    measure: which of its results counts, and which direction is `better`. against: the method or procedure it is compared with
    under the same seeds, or `self`: the entry itself with the settings `ablate` changed, by dotted path (`{"trust.high": 0.2}`,
    parameters of a procedure by name). margin: by how much the entry must be better (negative: may be worse).
    """

    text: str
    experiment: str
    measure: str
    against: str
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    ablate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.against == "self") != bool(self.ablate):
            raise UsageError("a claim against `self` names in `ablate` what is changed, and no other claim does")


@dataclass(frozen=True)
class Reduction:
    """An identity: with these stages replaced, loss and gradient are those of the method `to` (with `its` replaced)."""

    to: str
    stages: dict[str, Any] = field(default_factory=dict)
    its: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """Where a method or procedure comes from and what it says.

    system: name of what a paper's several entries make up together. base: the method it is written as a difference from.
    equation: its objective in one line. source: where that stands. claim: the paper's central claim; claims: what of it is put
    to the test here. confidence: how the definition was obtained (exact | reconstructed). weight: W(r, A) = -dF/dlogp per decision
    before reduction, where it is a function of ratio and advantage alone. reduces: methods it becomes at some setting. ordered: the
    rows' order matters by definition. beta: path of the setting that the paper calls beta, where its own name is another.
    """

    id: str
    title: str
    year: int
    arxiv: str | None
    equation: str
    source: str
    claim: str
    family: str = "policy_gradient"
    system: str | None = None
    base: str | None = None
    confidence: str = "exact"
    weight: Callable[[Tensor, Tensor], Tensor] | None = None
    reduces: tuple[Reduction, ...] = ()
    claims: tuple[Claim, ...] = ()
    ordered: bool = False
    beta: str | None = None
