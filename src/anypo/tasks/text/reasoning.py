"""Procedural problems of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), scored by its own verifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.tasks.text.records import Record, check_share, load_records
from anypo.tasks.text.rewards import Reward, is_unscored
from anypo.tasks.text.scoring import Scorer
from anypo.tasks.text.task import TextTask
from anypo.tasks.text.verifiers import text_of

EXECUTES = frozenset(
    (
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    )
)
"""Data sets whose verifiers evaluate an answer as Python, by eval or by sympy's parser, so that it can do anything."""

APART = 10_000_000
"""Distance between the seeds of training and held-out problems: problem i of a data set is drawn with seed + i."""


def make_reasoning_task(
    name: str,
    *,
    size: int = 1000,
    heldout: float | str | Path = 0.1,
    seed: int = 0,
    chat: bool = False,
    max_new: int | None = None,
    system: str | None = None,
    timeout: float = 60.0,
) -> TextTask:
    """Make a task of problems of a data set. A completion's answer is the text between <answer> tags, or all of it; an answer the
    verifier cannot read counts 0.

    Args:
        name: the data set.
        size: number of training problems.
        heldout: held-out problems as a share of `size`, drawn apart and less those that are training problems too; or a file that
            holds them, rows with a `prompt` and an `entry` as reasoning-gym writes it.
        seed: of the problems.
        chat: ask in a user message instead of plain text.
        max_new: tokens per completion (None: the policy's).
        system: a message before chat prompts.
        timeout: seconds that scoring the answers of a batch may take; one answer may take a twelfth.

    Raises:
        UsageError: there is no such data set, it has too few different problems, or it executes answers and the system allows
            no confined process.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS or name == "composite":
        raise unknown("reasoning-gym data set", name, set(DATASETS) - {"composite"})
    data = reasoning_gym.create_dataset(name, size=size, seed=seed)

    def record(entry: dict[str, Any]) -> dict[str, Any]:
        prompt = [{"role": "user", "content": entry["question"]}] if chat else entry["question"]
        return {"prompt": prompt, "answer": entry["answer"], "entry": entry}

    if isinstance(heldout, int | float):
        count = max(1, round(check_share(heldout) * size))
        other = reasoning_gym.create_dataset(name, size=count, seed=seed + APART)
        held = [record(entry) for entry in remaining(name, other, data)]
    else:
        held = load_records(heldout, check_entry, "a `prompt` and an `entry` of reasoning-gym")
    reward: Any = name
    if name in EXECUTES and not is_unscored():
        reward = Reward(_verify_apart(name, size, seed, data, timeout), name, 2 * timeout, together=True)
    elif not is_unscored():
        reward = Reward(_verify_here(data), name, timeout / 12, on_error=0.0)
    return TextTask(
        f"reasoning-gym:{name}",
        [record(e) for e in data],
        held,
        [reward],
        max_new=max_new,
        source="problems",
        system=system,
    )


def remaining(name: str, other: Any, data: Any) -> list[dict[str, Any]]:
    """Return the problems of a data set that are not in the training data; UsageError where none is left.

    Args:
        name: of the data sets.
        other: the problems.
        data: the training data.
    """
    questions = {entry["question"] for entry in data}
    held = [entry for entry in other if entry["question"] not in questions]
    if not held:
        raise UsageError(f"reasoning-gym:{name} has too few different problems to hold some out; lower size")
    return held


def check_entry(row: Record) -> Record:
    """Return a held-out row; UsageError unless it has what the verifier reads."""
    if not isinstance(row.get("entry"), dict):
        raise UsageError(f"{row.where} has no `entry`, the problem as reasoning-gym writes it")
    return row


def _verify_here(data: Any) -> Callable[..., list[float]]:
    """The verifier of a data set."""

    def verify(completions: list[Any], entry: list[dict[str, Any]]) -> list[float]:
        return [data.score_answer(_answer(c), entry=e) for c, e in zip(completions, entry, strict=True)]

    return verify


def _verify_apart(name: str, size: int, seed: int, data: Any, timeout: float) -> Callable[..., list[float | None]]:
    """The verifier of a data set in a process where an answer that is executed can do nothing."""
    example = data[0]
    expected = float(data.score_answer(example["answer"], entry=example))
    scorer = Scorer("reasoning", name, size, seed, example, expected, confined=True, total=timeout)
    try:
        scorer.start()
    except OSError as error:
        raise UsageError(
            f"the verifier of reasoning-gym:{name} executes what a model writes; anypo lets it do so in a confined process only, and this"
            f" system refuses one ({error}): allow user namespaces, or take another data set"
        ) from error

    def verify(completions: list[Any], entry: list[dict[str, Any]]) -> list[float | None]:
        return scorer([(_answer(c), e) for c, e in zip(completions, entry, strict=True)])

    return verify


def _answer(completion: Any) -> str:
    """The text between <answer> tags, or all of it."""
    from reasoning_gym.utils import extract_answer

    text = text_of(completion)
    return extract_answer(text) or text.strip()
