"""A procedure: a plain function with a card. A method is trained, a procedure is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from torch import Tensor

from anypo.errors import unknown
from anypo.method.card import Card
from anypo.ranges import alternatives, explain_parameters, parameter_hints

ROLES = ("planner", "estimator", "analysis", "loop", "suite")
"""What procedures do."""


@dataclass(frozen=True)
class Procedure:
    """A plain typed function, with where it comes from and what is known of its results.

    card: as of a method. call: the function; its parameters without a default are the inputs, the others are flags. known: checks
    with a known answer, functions without arguments that raise one sentence where it is wrong. kind: one of ROLES.

    Raises:
        UsageError: there is no such kind.
    """

    card: Card
    call: Callable[..., Any]
    known: Sequence[Callable[[], None]]
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ROLES:
            raise unknown(f"kind of the procedure {self.card.id}:", self.kind, ROLES)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the parameters of the function by name."""
        return dict(inspect.signature(self.call).parameters)

    def inputs(self) -> list[str]:
        """Return the names of the parameters without a default."""
        return [name for name, p in self.parameters().items() if p.default is p.empty]

    def flags(self) -> list[str]:
        """Return the names of the parameters with a default."""
        return [name for name, p in self.parameters().items() if p.default is not p.empty]

    def but(self, settings: dict[str, Any]) -> Procedure:
        """Return this procedure with some parameters of its function set."""
        known = self.parameters()
        for name in settings:
            if name not in known:
                raise unknown(f"parameter of {self.card.id}:", name, known)
        return replace(self, call=partial(self.call, **settings))

    def hints(self) -> dict[str, Any]:
        """Return the annotations of the parameters, ranges included."""
        return {name: parameter_hints(self.call).get(name, Any) for name in self.parameters()}

    def places(self) -> list[str]:
        """Return what is typed, in order: the names of the inputs, and FILE for all tensors among them."""
        hints = self.hints()
        return list(dict.fromkeys("FILE" if is_array(hints[name]) else name for name in self.inputs()))

    def usage(self) -> str:
        """Return how the procedure is typed: its inputs, and its flags in brackets."""
        hints, places = self.hints(), self.places()
        words = ["DATASET" if is_table(hints.get(place)) else place.upper() for place in places]
        flags = [
            f"[--{name.replace('_', '-')} {describe_value(hints[name], 'FILE' in places)}]" for name in self.flags()
        ]
        return " ".join(["anypo run", self.card.id, *words, *flags])

    def explain(self) -> str:
        """Return the procedure in words: title, kind, usage, parameters, equation, source, known answers, claim."""
        card = self.card
        title = f"{card.title} ({card.year}{f', arXiv {card.arxiv}' if card.arxiv else ''})"
        article = "an" if self.kind[0] in "ae" else "a"
        about = explain_parameters(inspect.getdoc(self.call) or "", self.parameters())
        columns = [name for name in self.inputs() if is_array(self.hints()[name])]
        lines = [title, f"{card.id}: {article} {self.kind}", "", f"Call       {self.usage()}"]
        lines += [f"  FILE: the columns {', '.join(columns)}"] * bool(columns)
        lines += [f"  {name}: {sentence}" for name, sentence in about.items()]
        lines += [f"Equation   {card.equation}", f"Source     {card.source} [{card.confidence}]"]
        lines += [f"Known      {describe_check(check)}" for check in self.known]
        return "\n".join([*lines, f"Claim      {card.claim}"])


def describe_check(check: Callable[[], None]) -> str:
    """Return a check with a known answer in words, by the name of its function."""
    return getattr(check, "__name__", "a check").replace("_", " ").strip()


def is_array(hint: Any) -> bool:
    """Return whether an annotation is that of a tensor, with or without its shape."""
    return any(option is Tensor or getattr(option, "array_type", None) is Tensor for option, _ in alternatives(hint))


def is_table(hint: Any) -> bool:
    """Return whether an annotation is that of recorded transitions, `parts.store.episodes.Table`."""
    return any(option == dict[str, Tensor] for option, _ in alternatives(hint))


WORDS = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "FILE"}
"""How values are written in usages, by type."""


def describe_value(hint: Any, with_file: bool) -> str:
    """Return what is typed for a flag: a column of the FILE for a tensor, where there is one, a data set for transitions, else a word
    for its type."""
    if is_array(hint):
        return "COLUMN" if with_file else "FILE"
    if is_table(hint):
        return "DATASET"
    words = []
    for option, _ in alternatives(hint):
        if get_origin(option) is Literal:
            words += map(str, get_args(option))
        elif get_origin(option) in (tuple, list, Sequence):
            words.append(f"{describe_value(get_args(option)[0], with_file)},...")
        elif option is not NoneType:
            words.append(WORDS.get(option, "VALUE"))
    return "|".join(dict.fromkeys(words))
