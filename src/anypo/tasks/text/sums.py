"""The default task: `37+48=` is to be continued with `85`. Procedural, exactly verified, with a held-out split.

Its base model has learned from careless demonstrations, so it can carry but mostly does not: reinforcement corrects that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from anypo.ranges import Inner
from anypo.tasks.text.records import hold_out
from anypo.tasks.text.task import TextTask


class Sums(TextTask):
    """All 8,100 sums of two two-digit numbers.

    heldout: share of them that is never trained on, the same for every seed (500 sums), or a file of such sums with their `answer`.
    """

    default_policy: str | None = "tiny"

    def __init__(self, *, heldout: Inner[float] | str | Path = 0.0617):
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        order = np.random.default_rng(0).permutation(len(pairs))
        problems = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in (pairs[i] for i in order)]
        super().__init__("sums", *hold_out(problems, heldout), ["exact"], max_new=4)

    def demonstrations(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(prompt, completion) pairs that forget to carry in two sums of three; held-out: the careless sums."""
        train = [(r["prompt"], a) for r in self.records for a in (r["answer"], *[careless(r["prompt"])] * 2)]
        return train, [(r["prompt"], careless(r["prompt"])) for r in self.heldout]

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """128 prompts x 8 samples where the method compares them, else 1024 x 1."""
        rows = {"requests": 128} if traits["grouped"] else {"requests": 1024}
        return super().recipe(traits) | rows | {"lr": 2e-4, "schedule": "linear", "warmup": 10, "steps": 200}


def careless(prompt: str) -> str:
    """Return the sum in `prompt` with every carry forgotten: 37+48= gives 75."""
    a, b = prompt.rstrip("=").split("+")
    digits = [(int(x) + int(y)) % 10 for x, y in zip(a, b, strict=True)]
    return str(10 * digits[0] + digits[1])
