"""Built-in verifiers: rewards that compare a completion with the `answer` of its record, which is missing where it is null."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from anypo.errors import UsageError
from anypo.tasks.text.scoring import Scorer

BUILT_IN = ("exact", "numeric", "math", "regex")


def text_of(message: str | list[dict[str, Any]]) -> str:
    """Return the text of a completion, plain or chat."""
    return message if isinstance(message, str) else str(message[-1]["content"])


def make_verifier(name: str, pattern: str | None, timeout: float, on_error: str | float) -> Callable[..., Any]:
    """Make the function of one of `BUILT_IN`.

    Args:
        name: which.
        pattern: of regex; None: the record's answer.
        timeout: seconds for all completions of a call.
        on_error: what those score that are not reached in them, where it is a number; else they are missing.
    """
    limits = {"total": timeout, "unreached": None if isinstance(on_error, str) else float(on_error)}
    if name == "exact":
        return exact_match
    if name == "numeric":
        return numeric_match
    if name == "math":
        return _scored_apart(Scorer("math", **limits))
    if pattern is None:
        return _scored_apart(Scorer("regex", None, **limits))
    check_pattern(pattern, f"the pattern of the reward regex:{pattern}")
    score = Scorer("regex", pattern, **limits)
    return lambda completions: score([(text_of(c), None) for c in completions])


def check_pattern(pattern: Any, where: str) -> None:
    """Raise UsageError, naming where it is written, for a pattern that is no regular expression."""
    try:
        re.compile(str(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{where} is not a regular expression: {error}") from error


def check_answer_pattern(record: dict[str, Any], where: str) -> None:
    """Raise UsageError where the answer of a record is no regular expression."""
    if record["answer"] is not None:
        check_pattern(record["answer"], f"the answer of {where}")


def exact_match(completions: list[Any], answer: list[Any]) -> list[float | None]:
    """1 where the completion equals `answer`, spaces around both aside."""
    return [
        None if a is None else float(text_of(c).strip() == str(a).strip())
        for c, a in zip(completions, answer, strict=True)
    ]


_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def last_number(text: str) -> Decimal | None:
    """Return the last number written in a text; `1,234.50` is 1234.5. None where there is none, or its exponent has no bounds."""
    numbers = _NUMBER.findall(text)
    try:
        return Decimal(numbers[-1].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


def numeric_match(completions: list[Any], answer: list[Any]) -> list[float | None]:
    """1 where the completion's last number equals the last number of `answer`; missing where `answer` has none."""
    pairs = [(last_number(text_of(c)), last_number(str(a))) for c, a in zip(completions, answer, strict=True)]
    return [None if gold is None else float(number == gold) for number, gold in pairs]


def _scored_apart(scorer: Scorer) -> Callable[..., Any]:
    """Return a verifier whose comparisons run in a process that can be killed; completions without an answer are missing."""

    def score(completions: list[Any], answer: list[Any]) -> list[float | None]:
        present = [i for i, a in enumerate(answer) if a is not None]
        scores: list[float | None] = [None] * len(answer)
        for i, x in zip(present, scorer([(text_of(completions[i]), str(answer[i])) for i in present]), strict=True):
            scores[i] = x
        return scores

    return score
