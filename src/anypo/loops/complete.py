"""Complete a prompt with a run's language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anypo.errors import UsageError
from anypo.rng import row_seeds
from anypo.runs.run import Run
from anypo.tasks.text.task import TextTask, as_prompt


def complete_prompt(
    run: Run,
    prompt: str | Sequence[dict[str, Any]],
    n: int = 1,
    *,
    greedy: bool = False,
    max_new: int | None = None,
    seed: int = 0,
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of a prompt and those of its completions.

    Args:
        run: of a language model.
        prompt: text, or chat messages.
        n: completions.
        greedy: the likeliest token every time.
        max_new: tokens at most; None: the run's own number.
        seed: of the draws.

    Raises:
        UsageError: the run has no language model.
    """
    if not isinstance(run.task, TextTask):
        raise UsageError(f"{run.folder} is a run of {run.task.name}; `sample` needs a language model")
    ids = run.policy.encode(as_prompt(run.task, prompt) if isinstance(prompt, str) else prompt)
    with torch.no_grad():
        done = run.policy.sample(
            [ids], row_seeds(seed, [0], [n]), samples=n, max_new=max_new or run.task.max_new, greedy=greedy
        )
    return ids, [row[:length] for row, length in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)]
