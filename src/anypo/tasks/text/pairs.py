"""Preference data as a task: answers that somebody ranked or marked are the rows, nothing is sampled to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.ops.log_ratio import last_value
from anypo.tasks.text import jsonl
from anypo.tasks.text.rewards import make_rewards
from anypo.tasks.text.task import Record, TextTask, is_prompt
from anypo.types import Request, Trajectories

PAIRS_AT_ONCE = 32
"""Held-out answers read together."""


FORM = "a `prompt` with `chosen` and `rejected`, or with `completion` and `label`"


Given = tuple[list[int], list[int], float]
"""Token ids of a prompt and of an answer, and its mark: 1 for a preferred answer, 0 for the other."""


class Pairs(TextTask):
    """Answers with marks: of the two answers to a prompt the chosen one is preferred, a single one is good or bad.

    records, heldout: as `load` gives them. A request is answered by the record's rows, all in one group, with `preferred` 1 or 0
    and, where every record has them, `score_chosen` and `score_rejected` as the score. max_new: tokens of an answer that are read
    (None: all); answers end with the end-of-text token, unless they are cut.

    Measures on held-out records (see `evaluate`): how the policy ranks their answers, and with rewards also how it answers.
    """

    sampled = False

    def __init__(
        self,
        name: str,
        records: Sequence[dict[str, Any]],
        heldout: Sequence[dict[str, Any]],
        rewards: Sequence[Any] = (),
        *,
        max_new: int | None = None,
        source: str = "records",
    ):
        super().__init__(name, records, heldout, rewards, metric="ranking_accuracy", max_new=max_new, source=source)
        self.channels = self.channels or ("preferred",)
        self.paired = all("chosen" in r for r in (*self.records, *self.heldout))
        scores = [r.get(key) for r in self.records for key in ("score_chosen", "score_rejected")]
        self.scored = self.paired and all(isinstance(s, int | float) and math.isfinite(s) for s in scores)

    def prepare(self, policy: Any) -> None:
        """Turn every answer into tokens once; raise UsageError, naming the record, for one that leaves the model's context."""
        self._given = [self._encoded(policy, self.records, i) for i in range(len(self.records))]
        self._kept = [self._encoded(policy, self.heldout, i) for i in range(len(self.heldout))]
        longest = max(len(answer) for rows in (*self._given, *self._kept) for _, answer, _ in rows)
        self.max_new = self.max_new or longest
        if self.rewards:
            super().prepare(policy)
        self._origin = self._merits(policy)

    def _encoded(self, policy: Any, records: Sequence[dict[str, Any]], i: int) -> list[Given]:
        record = records[i]
        try:
            prompt = policy.encode(record["prompt"])
        except UsageError as error:
            raise UsageError(f"{self._where(records, i)}: {error}") from error
        found = []
        for text, mark in marked(record):
            answer = [*policy.encode_hint(text), policy.end][: self.max_new]
            if not policy.fits(len(prompt), len(answer)):
                raise UsageError(
                    f"{self._where(records, i)} has {len(prompt)} tokens of prompt and {len(answer)} of an answer, more than the"
                    f" context of {policy.context} tokens of {policy.name}; shorten it, or cut answers with --task.max_new"
                )
            found.append((prompt, answer, mark))
        return found

    def rollout(
        self, policy: Any, requests: list[Request], generator: torch.Generator
    ) -> tuple[Trajectories, dict[str, float]]:
        """The given answers of the requested records; `samples` and `horizon` of a request have no say."""
        starts = [self._start(r) for r in requests]
        b = self._batch(policy, [self._given[i] for i in starts])
        if self.scored:
            each = [self.records[i][key] for i in starts for key in ("score_chosen", "score_rejected")]
            b = b.but(score=torch.tensor(each, dtype=torch.float32, device=b.valid.device))
        return b, {"length": float(b.lengths.float().mean()), "tokens": float(b.lengths.sum())}

    def _batch(self, policy: Any, given: Sequence[Sequence[Given]]) -> Trajectories:
        rows = [row for some in given for row in some]
        b = policy.pack([p for p, _, _ in rows], [a for _, a, _ in rows])
        group = torch.arange(len(given)).repeat_interleave(torch.tensor([len(some) for some in given]))
        preferred = torch.tensor([mark for _, _, mark in rows], device=b.valid.device)
        return b.but(group=group.to(b.valid.device)).put({"preferred": preferred})

    def evaluate(self, policy: Any, generator: torch.Generator, episodes: int | None = None) -> dict[str, float]:
        """On the held-out records (the first `episodes` of them):

        ranking_accuracy: share of pairs whose preferred answer has the larger implicit reward, ties count one half; margin: mean
        gap of the implicit rewards; logp_chosen: mean log-probability (nats) of the preferred answers. The implicit reward of an
        answer is log pi / pi_start, pi_start the policy training began with; of a policy with a value head it is the head's value
        at the answer's end. Single marked answers: every good one is compared with every bad one.
        With rewards also accuracy, reward and length of greedy answers, see `TextTask.evaluate`.
        """
        kept = self._kept[:episodes]
        batch = self._batch(policy, kept)
        now, start = self._merits(policy)[: len(batch.valid)], self._origin[: len(batch.valid)]
        merit = now if policy.heads else now - start
        good, group = batch.extra["preferred"].cpu() > 0.5, batch.group
        assert group is not None
        there = good[:, None] & ~good
        w, l = (there & (group[:, None] == group).cpu() if self.paired else there).nonzero().unbind(1)  # noqa: E741
        gap = merit[w] - merit[l]
        found = {
            "ranking_accuracy": float(((gap > 0) + 0.5 * (gap == 0)).mean()) if len(gap) else 0.5,
            "margin": float(gap.mean()) if len(gap) else 0.0,
        }
        if not policy.heads and bool(good.any()):
            found["logp_chosen"] = float(now[good].mean())
        if self.rewards:
            judged = super().evaluate(policy, generator, episodes)
            found |= {"accuracy" if name == self.metric else name: value for name, value in judged.items()}
        return found

    @torch.no_grad()
    def _merits(self, policy: Any) -> Tensor:
        """[N] of the held-out answers: log-probability, or what the value head gives at the end."""
        found = []
        want = policy.heads[0] if policy.heads else "logp"
        for at in range(0, len(self._kept), PAIRS_AT_ONCE):
            b = self._batch(policy, self._kept[at : at + PAIRS_AT_ONCE])
            seen = policy.evaluate(b, {want})[want]
            found.append((last_value(b, seen) if policy.heads else seen.sum(1)).double().cpu())
        return torch.cat(found)

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """32 records per batch, one update each, one pass over the data. Raises UsageError where a method compares answers and the
        data have single ones."""
        if traits["grouped"] and not self.paired:
            raise UsageError(
                f"the method compares answers to one prompt, and {self.source} holds single marked answers; use a method"
                " that takes marks, such as kto"
            )
        own = {"lr": 1e-5 if traits.get("lora") else 1e-6, "requests": 32, "samples": 1 + self.paired}
        return super().recipe(traits) | own | {"steps": math.ceil(len(self.records) / 32)}


def marked(record: dict[str, Any]) -> list[tuple[str, float]]:
    """(answer, mark) of a record."""
    if "chosen" in record:
        return [(record["chosen"], 1.0), (record["rejected"], 0.0)]
    return [(record["completion"], float(record["label"]))]


def load_pairs(path: str | Path) -> list[Record]:
    """The records of a JSONL file, or of a folder written by `datasets.save_to_disk` (its split `train`, where it has several).

    Raises UsageError naming file and line for one that is not `FORM`.
    """
    path = Path(path)
    if not path.is_dir():
        return [checked(record, str(record.where)) for record in jsonl.load_records(path)]
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"the folder {path} is no data set: {str(error).splitlines()[0]}") from None
    if isinstance(found, DatasetDict):
        if "train" not in found:
            raise UsageError(
                f"the data set {path} has no split `train`, only {', '.join(map(str, found))}; give PATH/SPLIT"
            )
        found = found["train"]
    records = []
    for i, row in enumerate(found):
        record = Record({k: v for k, v in dict(row).items() if v is not None})
        record.where = f"{path} row {i}"
        records.append(checked(record, record.where))
    if not records:
        raise UsageError(f"{path} is empty; it needs at least one row with {FORM}")
    return records


def checked(record: Record, where: str) -> Record:
    """The record with its answers as text."""
    if not is_prompt(record.get("prompt")):
        raise UsageError(f'{where} needs a `prompt`: text, or a list of {{"role": ..., "content": ...}} messages')
    names = ("completion",) if "completion" in record else ("chosen", "rejected")
    for name in names:
        if name not in record:
            raise UsageError(f"{where} has no `{name}`; it needs {FORM}")
        record[name] = _answer(record, name, where)
    if "completion" in record and record.get("label") not in (True, False):
        raise UsageError(f"{where} has the `label` {record.get('label')!r}; it must be true or false")
    return record


def _answer(record: Record, name: str, where: str) -> str:
    """The text of an answer: plain, or the last of chat messages, which may repeat the prompt before it."""
    found, prompt = record[name], record["prompt"]
    if isinstance(found, str):
        return found
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if is_prompt(found) and found[:-1] in ([], before) and isinstance(found[-1]["content"], str):
        return found[-1]["content"]
    raise UsageError(f"{where} has a `{name}` that is neither text nor one chat message after the prompt")


def make_pairs_task(
    path: str | Path,
    reward: Any = None,
    *,
    heldout: float | str | Path = 0.1,
    max_new: int | None = None,
    timeout: float = 60.0,
    on_error: str | float = "raise",
    concurrency: int = 8,
) -> Pairs:
    """Make the task of a file or folder of preferences.

    Args:
        path: the file or folder, see `load_pairs`.
        reward: of greedy answers to held-out prompts; anything `make_reward` takes, or a list of such.
        heldout: share of the prompts kept for evaluation, or a file that holds them.
        max_new: tokens of an answer that are read (None: all).
        timeout, on_error, concurrency: of reward functions, see `rewards.Reward`.
    """
    rewards = make_rewards(reward, timeout=timeout, on_error=on_error, concurrency=concurrency)
    records, held = jsonl.divide(path, load_pairs(path), heldout, load_pairs)
    return Pairs(f"pairs:{path}", records, held, rewards, max_new=max_new, source=str(path))
