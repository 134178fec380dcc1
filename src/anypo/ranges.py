"""What values a setting takes: its type and its range, declared in the annotation of its field or parameter, checked where it is set.

`lr: NonNegative[Number] | None` is a number or a knob that is at least 0, or None. A number without a range may be any finite one.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from anypo.errors import UsageError
from anypo.numbers import Knob, TracedScalar
from anypo.types import FIELDS


@dataclass(frozen=True)
class Range:
    """The numbers between two limits, or those beside an excluded one; NaN is never among them.

    least, most: limits that belong to it. above, below: limits that do not. infinite: infinities within the limits belong to it.
    """

    least: int | float = -math.inf
    most: int | float = math.inf
    above: int | float = -math.inf
    below: int | float = math.inf
    infinite: bool = False

    def __contains__(self, x: int | float) -> bool:
        inside = self.least <= x <= self.most and (self.above < x < self.below or math.isinf(x))
        return inside and (math.isfinite(x) or self.infinite)

    def __str__(self) -> str:
        if self.least > -math.inf and self.most < math.inf:
            return f"from {self.least:,} to {self.most:,}"
        limits = ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)
        return " and ".join(f"{word} {x:,}" for word, x in limits if math.isfinite(x)) or "finite"


@dataclass(frozen=True)
class Text:
    """The texts that are not empty."""

    def __contains__(self, x: str) -> bool:
        return x != ""

    def __str__(self) -> str:
        return "a text that is not empty"


@dataclass(frozen=True)
class HeadName(Text):
    """The names a value function may have: words of letters, digits and `_` that are no field of a batch."""

    def __contains__(self, x: str) -> bool:
        return x.isidentifier() and x not in TAKEN

    def __str__(self) -> str:
        return "a word of letters, digits and _ that is no field of a batch"


TAKEN = frozenset((*FIELDS, "action", "taken", "luck")) - {"value"}
"""Names of fields and functionals."""


T = TypeVar("T")

Finite = Annotated[T, Range()]
Positive = Annotated[T, Range(above=0)]
NonNegative = Annotated[T, Range(least=0)]
Bound = Annotated[T, Range(least=0, infinite=True)]
"""At least 0; infinite where nothing is to be bounded."""
Share = Annotated[T, Range(least=0, most=1)]
Inner = Annotated[T, Range(above=0, below=1)]
Decay = Annotated[T, Range(least=0, below=1)]
Count = Annotated[T, Range(least=1)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
Members = Annotated[int, Range(least=1, most=100)]
"""Of an ensemble of networks."""
Size = Annotated[T, Range(least=1, most=1_000_000)]
"""Of something made before the plan is printed."""
Filled = Annotated[T, Text()]
Named = Annotated[T, HeadName()]
"""Name of a value function."""
Width = Annotated[T, Range(least=1, most=4096)]
"""Of a layer."""


class _Mismatch(Exception):
    """A value is of another type than the hint, or, with a text, of that type and outside its range."""


def check(path: str, hint: Any, value: Any) -> Any:
    """Return a value as its setting takes it: whole floats as integers where those are asked for, lists as tuples.

    Args:
        path: of the setting, as typed.
        hint: its annotation.
        value: as configured.

    Raises:
        UsageError: the value is of another type or outside the declared range.
    """
    try:
        return convert_to_any(hint, value)
    except _Mismatch as mismatch:
        if str(mismatch):
            raise UsageError(f"{path} is {shown(value)}, it must be {mismatch}") from None
        raise UsageError(f"{path} is {value!r}; it takes {describe_hint(hint)}") from None


def shown(value: Any) -> str:
    """Return a value as text: knobs and numbers as they print, others as Python writes them."""
    return str(value) if isinstance(value, (float, int, Knob)) else repr(value)


def alternatives(hint: Any, limits: Range | Text = Range()) -> Iterator[tuple[Any, Range | Text]]:
    """Every member of a union, each with the range declared round it."""
    origin = get_origin(hint)
    if origin is Annotated:
        declared = [x for x in hint.__metadata__ if isinstance(x, (Range, Text))]
        yield from alternatives(hint.__origin__, declared[0] if declared else limits)
    elif origin in (Union, UnionType):
        for option in get_args(hint):
            yield from alternatives(option, limits)
    else:
        yield hint, limits


def describe_range(hint: Any) -> str:
    """Return what a hint allows, ranges included: `a number from 0 to 1, null`."""
    words = []
    for option, limits in alternatives(hint):
        word = describe_hint(option)
        limited = option in (int, float) and limits != Range()
        words += [f"{word} {limits}" if limited else word] * bool(word)
    return ", ".join(dict.fromkeys(words))


NAMES = {Any: "anything", str: "text", Path: "text", int: "a whole number", float: "a number", bool: "true, false"}


def describe_hint(hint: Any) -> str:
    """Return what a hint allows as a list of words."""
    words = []
    for option, _ in alternatives(hint):
        if get_origin(option) is Literal:
            words += map(repr, get_args(option))
        elif option is NoneType:
            words.append("null")
        elif get_origin(option) in (tuple, list, Sequence, Iterable):
            words.append(f"a list of {describe_hint(get_args(option)[0])}")
        elif option in NAMES:
            words.append(NAMES[option])
        elif get_origin(option) is dict:
            words.append("a dictionary")
        elif option is not Knob and option is not TracedScalar:
            words.append(option.__name__)
    return ", ".join(dict.fromkeys(words))


def convert_to_any(hint: Any, value: Any) -> Any:
    """Return a value as the first member of a hint's union that it fits takes it.

    Raises:
        _Mismatch: it fits none; with the text of the first range that it is outside of.
    """
    outside = []
    for option, limits in alternatives(hint):
        try:
            return convert(option, limits, value)
        except _Mismatch as mismatch:
            outside += [str(mismatch)] * bool(str(mismatch))
    raise _Mismatch(*outside[:1])


def convert(option: Any, limits: Range | Text, value: Any) -> Any:
    """Return a value as one member of a hint's union takes it.

    Args:
        option: the member.
        limits: its range.
        value: as configured.

    Raises:
        _Mismatch: the value is of another type or outside the range.
    """
    origin = get_origin(option)
    if option is Any:
        return value
    if origin is Literal:
        return keep(value, any(type(value) is type(c) and value == c for c in get_args(option)))
    if origin is Iterable:
        return keep(value, isinstance(value, Iterable))
    if origin in (tuple, list, Sequence):
        return convert_list(option, value)
    if origin in (dict, Mapping):
        return keep(value, isinstance(value, dict))
    if option in (int, float):
        return convert_number(option, limits, value)
    if option is Knob:
        keep(value, isinstance(value, Knob))
        for x in value.reach() if hasattr(value, "reach") else ():
            within(x, limits)
        return value
    keep(value, isinstance(value, option))
    if option is str and isinstance(limits, Text) and value not in limits:
        raise _Mismatch(str(limits))
    return value


def keep(value: Any, fits: bool) -> Any:
    """Return the value where it fits."""
    if not fits:
        raise _Mismatch
    return value


def convert_number(kind: type, limits: Any, value: Any) -> Any:
    """Return a number of a kind.

    Args:
        kind: int or float.
        limits: its range.
        value: as configured.

    Raises:
        _Mismatch: the value is no such number or outside the range.
    """
    keep(value, isinstance(value, (int, float)) and not isinstance(value, bool))
    if kind is int and isinstance(value, float) and math.isfinite(value):
        value = int(keep(value, value.is_integer()))
    within(value, limits)
    keep(value, kind is float or isinstance(value, int))
    return kind(value)


def within(x: int | float, limits: Any) -> None:
    """Refuse a number outside the limits, or too large for a float."""
    if x not in limits or (isinstance(x, int) and abs(x) > 2**63):
        raise _Mismatch(str(limits))


def convert_list(option: Any, value: Any) -> Any:
    """Return a list as its members' hints take them; one number or text, or several with commas between them, is a list too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (value,)
    elif isinstance(value, str):
        value = tuple(read_number(piece) for piece in value.split(","))
    if not isinstance(value, (list, tuple)):
        raise _Mismatch
    hints = get_args(option)
    if get_origin(option) is not tuple or hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    keep(value, len(hints) == len(value))
    members = [convert_to_any(hint, member) for hint, member in zip(hints, value, strict=True)]
    return members if get_origin(option) is list else tuple(members)


def read_number(text: str) -> Any:
    """Read a number in plain decimal, `12`, `0.5`, `3e-4`, `inf` or `nan`; other text is returned as it is."""
    plain = text.strip()
    sign = plain[1:] if plain[:1] in ("-", "+") else plain
    if sign.isascii() and sign.isdigit():
        return int(plain) if len(plain) <= 30 else float(plain)
    if sign.lower() in ("inf", ".inf", "nan", ".nan"):
        return float(plain.replace(".", ""))
    # float() reads more than plain decimals: underscores, other scripts' digits, infinity
    if sign.isascii() and "_" not in sign and sign[:1] in tuple("0123456789."):
        try:
            return float(plain)
        except ValueError:
            return text
    return text


@cache
def field_hints(cls: type) -> dict[str, Any]:
    """Return the annotations of a class's fields, ranges included."""
    return get_type_hints(cls, include_extras=True)


@cache
def parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a factory's parameters, ranges included; of a class, those of its and its bases' `__init__`."""
    if not inspect.isclass(function):
        hints = get_type_hints(function, include_extras=True)
        return {p.name: hints[p.name] for p in inspect.signature(function).parameters.values() if p.name in hints}
    hints: dict[str, Any] = {}
    for base in reversed(function.__mro__):
        if "__init__" in vars(base) and base is not object:
            hints |= get_type_hints(vars(base)["__init__"], include_extras=True)
    return hints


def explain_parameters(doc: str, names: Collection[str]) -> dict[str, str]:
    """Return the first sentence that a docstring has on each parameter, where it has one.

    Args:
        doc: with entries `name: text` or `name, name: text`, each up to the next one or a blank line; below `Args:` where it has that.
        names: of the parameters.
    """
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    doc = section[1] if section else doc
    known = "|".join(map(re.escape, names)) or "$^"
    marks = list(re.finditer(rf"(?:(?<=\s)|^)((?:(?:{known}), )*(?:{known})): ", doc))
    sentences = {}
    for i, mark in enumerate(marks):
        end = marks[i + 1].start() if i + 1 < len(marks) else len(doc)
        text = " ".join(re.split(r"\n\s*\n", doc[mark.end() : end])[0].split())
        sentence = re.split(r"(?<=\.)\s", text)[0].removesuffix(".").removesuffix(";")
        sentences |= dict.fromkeys(mark[1].split(", "), sentence)
    return sentences
