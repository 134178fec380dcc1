"""Procedural problems of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), scored by its own verifiers."""

from __future__ import annotations

from typing import Any

from anypo.errors import UsageError, unknown
from anypo.ranges import Count, Seed, Size
from anypo.tasks.text.rewards import Reward, text_of
from anypo.tasks.text.task import TextTask

APART = 10_000_000
"""Distance between the seeds of training and held-out problems: problem i of a data set is drawn with seed + i."""


def make_reasoning_task(
    name: str,
    *,
    size: Size[int] = 1000,
    heldout: Size[int] = 100,
    seed: Seed = 0,
    chat: bool = False,
    max_new: Count[int] | None = None,
) -> TextTask:
    """Make a task of problems of a data set. A completion's answer is the text between <answer> tags, or all of it; an answer the
    verifier cannot read counts 0.

    Args:
        name: the data set.
        size: number of training problems.
        heldout: number of held-out problems, less those that are training problems too.
        seed: of the problems.
        chat: ask in a user message instead of plain text.
        max_new: tokens per completion.

    Raises:
        UsageError: there is no such data set, or it has too few different problems.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    from reasoning_gym.utils import extract_answer

    if name not in DATASETS or name == "composite":
        raise unknown("reasoning-gym data set", name, set(DATASETS) - {"composite"})
    data = reasoning_gym.create_dataset(name, size=size, seed=seed)
    other = reasoning_gym.create_dataset(name, size=heldout, seed=seed + APART)
    questions = {entry["question"] for entry in data}
    held = [entry for entry in other if entry["question"] not in questions]
    if not held:
        raise UsageError(f"reasoning-gym:{name} has too few different problems to hold some out; lower size")

    def record(entry: dict[str, Any]) -> dict[str, Any]:
        question = entry["question"]
        prompt = [{"role": "user", "content": question}] if chat else question
        return {"prompt": prompt, "answer": entry["answer"], "entry": entry}

    def verify(completions: list[Any], entry: list[dict[str, Any]]) -> list[float]:
        texts = [text_of(c) for c in completions]
        answers = [extract_answer(t) or t.strip() for t in texts]
        return [data.score_answer(answer, entry=e) for answer, e in zip(answers, entry, strict=True)]

    return TextTask(
        f"reasoning-gym:{name}",
        [record(e) for e in data],
        [record(e) for e in held],
        [Reward(verify, name=name, timeout=10.0, on_error=0.0)],
        max_new=max_new,
        source="problems",
    )
