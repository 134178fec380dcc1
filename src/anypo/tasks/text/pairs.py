"""Preference data as a task: ranked or marked answers are the rows, nothing is sampled to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.ops.log_ratio import last_value
from anypo.ranges import Count, Filled, Finite, Inner, Range
from anypo.tasks.text.answers import ANSWERS_AT_ONCE, Answer, encode_answer, evaluate_answers, pack_answers
from anypo.tasks.text.records import Record, Source, divide, is_prompt, load_records
from anypo.tasks.text.rewards import make_rewards
from anypo.tasks.text.task import TextTask
from anypo.types import Request, Trajectories

FORM = "a `prompt` with `chosen` and `rejected`, or with `completion` and `label`"


MarkedAnswer = tuple[list[int], list[int], float]
"""Token ids of a prompt and of an answer, and its mark: 1 for a preferred answer, 0 for the other."""


class Pairs(TextTask):
    """Answers with marks: of the two answers to a prompt the chosen one is preferred, a single one is good or bad.

    records, heldout: as `load_pairs` reads them. A request is answered by the record's rows, all in one group, with `preferred` 1 or 0
    and, where every record has them, `score_chosen` and `score_rejected` as the score. max_new: tokens of an answer that are read
    (None: all); answers end as the chat template ends them, or with the end-of-text token, unless they are cut.

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
        system: str | None = None,
    ):
        options: dict[str, Any] = {"max_new": max_new, "source": source, "system": system}
        super().__init__(name, records, heldout, rewards, metric="ranking_accuracy", **options)
        self.channels = self.channels or ("preferred",)
        self.paired = all("chosen" in r for r in (*self.records, *self.heldout))
        scores = [r.get(key) for r in self.records for key in ("score_chosen", "score_rejected")]
        self.scored = self.paired and all(isinstance(s, int | float) and math.isfinite(s) for s in scores)

    def prepare(self, policy: Any) -> None:
        """Turn every answer into tokens once; raise UsageError, naming the record, for one that leaves the model's context."""
        self._training = [self._encode(policy, self.records, i) for i in range(len(self.records))]
        self._heldout = [self._encode(policy, self.heldout, i) for i in range(len(self.heldout))]
        longest = max(len(answer) for rows in (*self._training, *self._heldout) for _, answer, _ in rows)
        self.max_new = self.max_new or longest
        if self.rewards:
            super().prepare(policy)
        self._origin = self._merits(policy)

    def _encode(self, policy: Any, records: Sequence[dict[str, Any]], i: int) -> list[MarkedAnswer]:
        where, remedy = self._where(records, i), "shorten it, or cut answers with --task.max_new"
        return [
            (*encode_answer(policy, records[i], text, where, most=self.max_new, remedy=remedy), mark)
            for text, mark in marked_answers(records[i])
        ]

    def _solution(self, policy: Any, records: Sequence[dict[str, Any]], i: int) -> Answer:
        """Tokens of a prompt and of the answer that is preferred."""
        prompt, answer, _ = (self._training if records is self.records else self._heldout)[i][0]
        return prompt, answer

    def _reference(self, record: dict[str, Any], where: str) -> str:
        if "chosen" not in record:
            raise UsageError(f"the method imitates the preferred of two answers, and {where} has a single marked one")
        return record["chosen"]

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Return the recorded answers of the requested records; `samples` and `horizon` of a request are ignored."""
        starts = [self._start(r) for r in requests]
        b = self._batch(policy, [self._training[i] for i in starts])
        if self.scored:
            scores = [self.records[i][key] for i in starts for key in ("score_chosen", "score_rejected")]
            b = b.but(score=torch.tensor(scores, dtype=torch.float32, device=b.valid.device))
        return b, {"length": float(b.lengths.float().mean()), "tokens": float(b.lengths.sum())}

    def _batch(self, policy: Any, records: Sequence[Sequence[MarkedAnswer]]) -> Trajectories:
        rows = [row for answers in records for row in answers]
        b = pack_answers(policy, [(prompt, answer) for prompt, answer, _ in rows])
        group = torch.arange(len(records)).repeat_interleave(torch.tensor([len(answers) for answers in records]))
        preferred = torch.tensor([mark for _, _, mark in rows], device=b.valid.device)
        return b.but(group=group.to(b.valid.device)).put({"preferred": preferred})

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """On the held-out records (the first `episodes` of them):

        ranking_accuracy: share of pairs whose preferred answer has the larger implicit reward, ties count one half; margin: mean
        gap of the implicit rewards; logp_chosen: mean log-probability (nats) of the preferred answers. The implicit reward of an
        answer is log pi / pi_start, pi_start the policy training began with; of a policy with a value head it is the head's value
        at the answer's end. Single marked answers: every good one is compared with every bad one.
        With rewards also accuracy, reward and length of greedy answers, see `TextTask.evaluate`.
        """
        batch = self._batch(policy, self._heldout[:episodes])
        now, start = self._merits(policy)[: len(batch.valid)], self._origin[: len(batch.valid)]
        merit = now if policy.heads else now - start
        good, group = batch.need("preferred").cpu() > 0.5, batch.need("group")
        compared = good[:, None] & ~good
        w, l = (compared & (group[:, None] == group).cpu() if self.paired else compared).nonzero().unbind(1)  # noqa: E741
        gap = merit[w] - merit[l]
        measures = {
            "ranking_accuracy": float(((gap > 0) + 0.5 * (gap == 0)).mean()) if len(gap) else 0.5,
            "margin": float(gap.mean()) if len(gap) else 0.0,
        }
        if not policy.heads and bool(good.any()):
            measures["logp_chosen"] = float(now[good].mean())
        if self.rewards:
            greedy = super().evaluate(policy, seed, episodes)
            measures |= {"accuracy" if name == self.share else name: value for name, value in greedy.items()}
        return measures

    @torch.no_grad()
    def _merits(self, policy: Any) -> Tensor:
        """[N] of the held-out answers: log-probability, or the value head's value at the end."""
        answers = [(prompt, answer) for rows in self._heldout for prompt, answer, _ in rows]
        evaluated = evaluate_answers(
            policy, answers, policy.heads[0] if policy.heads else "logp", ANSWERS_AT_ONCE * (1 + self.paired)
        )
        return torch.cat([(last_value(b, x) if policy.heads else x.sum(1)).double().cpu() for b, x in evaluated])

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """32 records per batch, one update each, one pass over the data. Raises UsageError where a method compares answers and the
        data have single ones."""
        if traits["grouped"] and not self.paired:
            raise UsageError(
                f"the method compares answers to one prompt, and {self.source} holds single marked answers; use a method"
                " that takes marks, such as kto"
            )
        samples = 1 if traits.get("imitates") else 1 + self.paired
        settings = {"lr": 1e-5 if traits.get("lora") else 1e-6, "requests": 32, "samples": samples}
        return super().recipe(traits) | settings | {"steps": math.ceil(len(self.records) / 32)}


def marked_answers(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the (answer, mark) pairs of a record."""
    if "chosen" in record:
        return [(record["chosen"], 1.0), (record["rejected"], 0.0)]
    return [(record["completion"], float(record["label"]))]


def load_pairs(source: Source) -> list[Record]:
    """Read the records of a source; UsageError, naming the row, for one that is not `FORM`."""
    return load_records(source, check_pair, FORM)


def check_pair(record: Record) -> Record:
    """Replace the answers of a record by their text; UsageError, naming the record, where it is not `FORM`."""
    where = record.where or "the record"
    names = ("completion",) if "completion" in record else ("chosen", "rejected")
    for name in names:
        if name not in record:
            raise UsageError(f"{where} has no `{name}`; it needs {FORM}")
        record[name] = _answer(record, name, where)
    if "completion" in record and record.get("label") not in (True, False):
        raise UsageError(f"{where} has the `label` {record.get('label')!r}; it must be true or false")
    return record


def _answer(record: Record, name: str, where: str) -> str:
    """Return the text of an answer: plain, or the last of chat messages, which may repeat the prompt before it."""
    answer, prompt = record[name], record["prompt"]
    if isinstance(answer, str):
        return answer
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if is_prompt(answer) and answer[:-1] in ([], before) and isinstance(answer[-1].get("content"), str):
        return answer[-1]["content"]
    raise UsageError(f"{where} has a `{name}` that is neither text nor one chat message after the prompt")


def make_pairs_task(
    source: str | Path,
    reward: Any = None,
    *,
    heldout: Inner[float] | str | Path = 0.1,
    max_new: Count[int] | None = None,
    system: Filled[str] | None = None,
    timeout: Annotated[float, Range(above=0, most=1_000_000)] = 60.0,
    on_error: Literal["raise", "drop"] | Finite[float] = "raise",
    concurrency: Annotated[int, Range(least=1, most=1024)] = 8,
) -> Pairs:
    """Make the task of a file or folder of preferences.

    Args:
        source: a JSONL or Parquet file, or a folder of `datasets`; the rows as in `load_pairs`.
        reward: of greedy answers to held-out prompts, named as in the task jsonl.
        heldout: share of the prompts kept for evaluation, or a file or folder that holds them.
        max_new: tokens of an answer that are read (None: all).
        system: a message before chat prompts that bring none of their own.
        timeout: seconds that a call of a reward function may take.
        on_error: `raise`, `drop` (no score), or the score of a call that fails.
        concurrency: calls of an asynchronous reward function at once.
    """
    rewards = make_rewards(reward, timeout=timeout, on_error=on_error, concurrency=concurrency)
    records, held = divide(source, heldout, check_pair, FORM)
    return Pairs(f"pairs:{source}", records, held, rewards, max_new=max_new, source=str(source), system=system)
