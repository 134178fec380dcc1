"""Card, claim and reduction: where a method comes from, what it says and how it is tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Claim:
    """An experiment that can fail, stated before it is run.

    text: what is expected, in one sentence. experiment: its name in the laboratory; settings: of that experiment.
    measure: which of its results counts, and which direction is `better`. against: the method it is compared with
    under the same seeds; margin: by how much the method must be better (negative: may be worse).
    """

    text: str
    experiment: str
    measure: str
    against: str
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reduction:
    """An identity: with these stages replaced, loss and gradient are those of the method `to` (with `its` replaced)."""

    to: str
    stages: dict[str, Any] = field(default_factory=dict)
    its: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """Where a method comes from and what it says.

    base: the method it is written as a difference from. equation: its objective in one line. source: where that stands.
    claim: the paper's central claim; claims: what of it is put to the test here. confidence: how the definition was
    obtained (exact | reconstructed). weight: W(r, A) = -dF/dlogp per decision before reduction, where it is a function of
    ratio and advantage alone. reduces: methods it becomes at some setting. ordered: the rows' order matters by definition. beta: path
    of the setting that the paper calls beta, where its own name is another.
    """

    id: str
    title: str
    year: int
    arxiv: str | None
    equation: str
    source: str
    claim: str
    family: str = "policy_gradient"
    base: str | None = None
    confidence: str = "exact"
    weight: Callable[[Tensor, Tensor], Tensor] | None = None
    reduces: tuple[Reduction, ...] = ()
    claims: tuple[Claim, ...] = ()
    ordered: bool = False
    beta: str | None = None
