"""Text tasks from your own prompts: rows with a `prompt` and whatever columns the rewards need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from anypo.ranges import Count, Filled, Finite, Inner, Range
from anypo.tasks.text.records import Source, divide
from anypo.tasks.text.rewards import make_rewards
from anypo.tasks.text.task import TextTask


def make_jsonl_task(
    source: Source,
    reward: Any = None,
    *,
    heldout: Inner[float] | str | Path | Iterable[Any] = 0.1,
    weights: Sequence[Finite[float]] | None = None,
    max_new: Count[int] | None = None,
    system: Filled[str] | None = None,
    timeout: Annotated[float, Range(above=0, most=1_000_000)] = 60.0,
    on_error: Literal["raise", "drop"] | Finite[float] = "raise",
    concurrency: Annotated[int, Range(least=1, most=1024)] = 8,
) -> TextTask:
    """Make the task of a JSONL or Parquet file, of a folder of `datasets`, or of rows in memory.

    Args:
        source: the rows, with a `prompt` and the columns that the rewards need.
        reward: `exact`, `numeric`, `math`, `regex:PATTERN`, `model:RUN`, FILE.py:FUNCTION, a function, or a list of such; none where
            the method imitates answers.
        heldout: share of the prompts kept for evaluation, or a file, folder or list that holds them.
        weights: of the rewards in the score (default 1 each).
        max_new: tokens per completion (None: the policy's).
        system: a message before chat prompts that bring none of their own.
        timeout: seconds that a call of a reward function may take.
        on_error: `raise`, `drop` (no score), or the score of a call that fails.
        concurrency: calls of an asynchronous reward function at once.

    Raises:
        UsageError: the source is no such data set.
    """
    rewards = make_rewards(reward, timeout=timeout, on_error=on_error, concurrency=concurrency)
    records, held = divide(source, heldout)
    name, rows = (f"jsonl:{source}", str(source)) if isinstance(source, str | Path) else ("object:rows", "rows")
    return TextTask(name, records, held, rewards, weights=weights, max_new=max_new, source=rows, system=system)
