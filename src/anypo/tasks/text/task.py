"""Tasks on text: records with a prompt, and rewards on the completions of a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import RunError, UsageError
from anypo.policies.language.batching import pad
from anypo.policies.language.generate import Sample, skip
from anypo.rng import request_seeds
from anypo.tasks.text.answers import Answer, as_demonstrations, encode_answer, measure_likelihood, pack_answers
from anypo.tasks.text.records import Record, add_system, encode_record, is_prompt, solution_of
from anypo.tasks.text.rewards import Reward, make_reward
from anypo.types import Request, Trajectories
from anypo.views import PLAIN

AT_ONCE = 256
"""Held-out prompts completed together."""


class TextTask:
    """Complete prompts; rewards score the completions.

    records, heldout: rows with at least `prompt`; every column goes to the rewards. rewards: anything `make_reward`
    takes; each is a channel. weights: of the channels in the score (default 1 each). metric: name of the held-out share
    of prompts whose greedy completion gets more than 0.5 from the first reward; where none is given that share, `accuracy`, is the
    task's measure if the first reward is a verifier, and the mean score, `reward`, if it is graded; a task without rewards, for
    methods that imitate, measures the `log_likelihood` of held-out reference solutions. max_new: tokens per completion.
    source: name of the records in messages. cue: text that asks for the answer after a completion that reasons first
    (None: the completion is the answer). system: a message before chat prompts that bring none of their own.

    A record's `solution`, else its `answer`, is its reference solution, of which hints are beginnings and which demonstrations repeat.
    """

    unit = "batches"
    continuing = False
    default_policy: str | None = None
    sampled = True
    """Rows are sampled from the policy, so at least one reward has to score them."""

    def __init__(
        self,
        name: str,
        records: Sequence[dict[str, Any]],
        heldout: Sequence[dict[str, Any]],
        rewards: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        metric: str | None = None,
        max_new: int | None = None,
        source: str = "records",
        cue: str | None = None,
        system: str | None = None,
    ):
        self.name, self.max_new, self.source, self.cue, self.system = name, max_new, source, cue, system
        self.records, self.heldout = list(records), list(heldout)
        self.rewards: list[Reward] = [make_reward(r) for r in rewards]
        self.share = metric or "accuracy"
        self.metric = metric or (
            "log_likelihood" if not self.rewards else "reward" if self.rewards[0].graded else "accuracy"
        )
        self.channels = tuple(r.name for r in self.rewards)
        self.weights = torch.tensor([1.0] * len(self.rewards) if weights is None else list(weights))
        self.starts: int | None = len(self.records)
        self.columns = tuple(dict.fromkeys(k for r in (*self.records, *self.heldout) for k in r if k != "prompt"))
        self._check()
        if system is not None:
            self.records, self.heldout = (
                [add_system(r, system, self._where(rows, i)) for i, r in enumerate(rows)]
                for rows in (self.records, self.heldout)
            )

    def _check(self) -> None:
        if not self.records or not self.heldout:
            raise UsageError(
                f"the task {self.name} has no {'training' if not self.records else 'held-out'} {self.source}"
            )
        if len(set(self.channels)) < len(self.channels):
            raise UsageError(f"two rewards have the same name ({', '.join(self.channels)}); rename one")
        if len(self.weights) != len(self.rewards):
            raise UsageError(f"the rewards {', '.join(self.channels)} need one weight each, not {len(self.weights)}")
        for records in (self.records, self.heldout):
            for i, record in enumerate(records):
                if not is_prompt(record.get("prompt")):
                    raise UsageError(
                        f"{self._where(records, i)} has no usable prompt; `prompt` must be text or a list of "
                        '{"role": ..., "content": ...} messages'
                    )
            for reward in self.rewards:
                reward.check(records, lambda i, records=records: self._where(records, i))

    def _where(self, records: Sequence[dict[str, Any]], i: int) -> str:
        part = "held-out record" if records is self.heldout else "record"
        record = records[i]
        return (isinstance(record, Record) and record.where) or f"{part} {i} of the {self.source}"

    def prepare(self, policy: Any) -> None:
        """Set max_new where it is open; raise UsageError, naming the record, for a prompt that does not encode or leaves no room; in
        a task without rewards, for such a solution."""
        self.max_new = self.max_new or int(policy.max_new)
        if not self.rewards:
            for i in range(len(self.records)):
                self._solution(policy, self.records, i)
            self._answers = [self._solution(policy, self.heldout, i) for i in range(len(self.heldout))]
            return
        for records in (self.records, self.heldout):
            for i, record in enumerate(records):
                try:
                    length = len(encode_record(policy, record))
                except UsageError as error:
                    raise UsageError(f"{self._where(records, i)}: {error}") from error
                if not policy.fits(length, self.max_new):
                    raise UsageError(f"the prompt of {self._where(records, i)} {policy.room(length, self.max_new)}")

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Completions of the requested records, scored, with metrics."""
        horizons = {r.horizon or self.max_new or policy.max_new for r in requests}
        if len(horizons) > 1:
            raise UsageError(f"requests sampled together must share their horizon, not {sorted(horizons)}")
        budget = horizons.pop()
        starts = [self.records[self._start(r)] for r in requests]
        plain = [encode_record(policy, start) for start in starts]
        hints = [self._hint(policy, start, r.hint) for start, r in zip(starts, requests, strict=True)]
        prompts = [prompt + hint for prompt, hint in zip(plain, hints, strict=True)]
        begun = [
            [] if r.prefix is None else r.prefix.trace["completion"][0, r.prefix.valid[0]].tolist() for r in requests
        ]
        counts = [r.samples for r in requests]
        beginnings = [p + b for p, b in zip(prompts, begun, strict=True)]
        group = torch.repeat_interleave(torch.arange(len(requests)), torch.tensor(counts))
        seeds = skip(request_seeds(seed, requests), torch.tensor([len(b) for b in begun])[group])
        done = policy.sample(beginnings, seeds, samples=counts, max_new=budget)
        fresh = done.mask
        if any(begun):
            done = join_prefixes(done, [r.prefix for r in requests], begun, group)
            old = torch.tensor([len(b) for b in begun], device=done.ids.device)[group.to(done.ids.device)]
            fresh = done.mask & (torch.arange(done.ids.shape[1], device=done.ids.device) >= old[:, None])
        rows = [starts[g] for g in group.tolist()]
        texts = _texts(policy, done)
        scores = self.score(rows, texts, done)
        score = combine(scores, self.weights)

        device = done.ids.device
        prompt, lengths = pad(prompts, device)
        group = group.to(device)
        b = Trajectories(
            logp_old=done.logp,
            mask=done.mask,
            score=score.to(device),
            scores=scores.to(device),
            group=group,
            fresh=fresh if any(begun) else None,
            truncated=~done.stopped,
            budget=budget,
            trace={"prompt": prompt[group], "prompt_length": lengths[group], "completion": done.ids},
        )
        if any(hints):
            unhinted, sizes = pad(plain, device)
            b.trace |= {f"prompt@{PLAIN}": unhinted[group], f"prompt_length@{PLAIN}": sizes[group]}
        if all(isinstance(s.get("answer"), str) and s["answer"] for s in starts):
            b.trace |= {k: x[group] for k, x in pack_known_answers(policy, starts, self.cue, device).items()}
        return b, describe_completions(self.rewards, texts, done, scores, score)

    def demonstrate(self, policy: Any, requests: list[Request]) -> Trajectories:
        """Return the reference solutions of the requested records as rows, each ended as the chat template, or else plain text, ends."""
        answers = [self._solution(policy, self.records, self._start(r)) for r in requests]
        return as_demonstrations(pack_answers(policy, answers), len(self.channels))

    def _solution(self, policy: Any, records: Sequence[dict[str, Any]], i: int) -> Answer:
        """Tokens of a record's prompt and reference solution."""
        where = self._where(records, i)
        return encode_answer(policy, records[i], self._reference(records[i], where), where)

    def _reference(self, record: dict[str, Any], where: str) -> str:
        """Return the text that demonstrations of a record repeat; UsageError, naming the record, where it has none."""
        return solution_of(record, where)

    def _hint(self, policy: Any, record: dict[str, Any], hint: str | float | None) -> list[int]:
        """Token ids of a hint: its text, or the beginning of the record's reference solution."""
        if isinstance(hint, float):
            solution = self._reference(record, f"a record of {self.name}")
            hint = solution[: round(hint * len(solution))]
        return policy.encode_hint(hint) if hint else []

    def _start(self, request: Request) -> int:
        if request.start is None:
            raise UsageError(f"the task {self.name} starts every request at a record; no text is unfinished")
        return request.start

    def score(self, records: Sequence[dict[str, Any]], texts: Sequence[str], done: Any) -> Float[Tensor, "row channel"]:
        """Return the scores of all completions by all rewards; NaN where missing."""
        ids = [row[:n] for row, n in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)]
        prompts = [r["prompt"] for r in records]
        completions = [
            text if isinstance(p, str) else [{"role": "assistant", "content": text}]
            for p, text in zip(prompts, texts, strict=True)
        ]
        columns = {k: [r.get(k) for r in records] for k in self.columns}
        channels = [reward(prompts, completions, ids, columns) for reward in self.rewards]
        return torch.tensor([[torch.nan if x is None else x for x in row] for row in zip(*channels, strict=True)])

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Greedy completions of the held-out records (the first `episodes` of them), or the likelihood of their solutions in a task
        without rewards."""
        if not self.rewards:
            return measure_likelihood(policy, self._answers[:episodes])
        records = self.heldout[:episodes]
        scores, lengths = [], []
        for at in range(0, len(records), AT_ONCE):
            chunk = records[at : at + AT_ONCE]
            prompts = [encode_record(policy, r) for r in chunk]
            done = policy.sample(prompts, None, max_new=self.max_new, greedy=True)
            scores.append(self.score(chunk, _texts(policy, done), done))
            lengths.append(done.lengths)
        score = torch.cat(scores)
        if bool(score.isnan().all()):
            raise RunError(
                f"no held-out completion of {self.name} has a score: every call of {', '.join(self.channels)} gave None or failed"
            )
        first = score[:, 0][~score[:, 0].isnan()]
        return {
            self.share: float((first > 0.5).float().mean()),
            "reward": float(combine(score, self.weights).nanmean()),
            "length": float(torch.cat(lengths).float().mean()),
        }

    def texts(self, policy: Any, b: Trajectories) -> list[tuple[str, str]]:
        """(prompt, completion) of every row, as the model reads them, less the tokens that end a text."""
        t = b.trace
        return [
            (policy.decode(p[:n]), policy.decode(c[:m]))
            for p, n, c, m in zip(
                t["prompt"].tolist(),
                t["prompt_length"].tolist(),
                t["completion"].tolist(),
                b.lengths.tolist(),
                strict=True,
            )
        ]

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """16 prompts x 8 samples where the method compares the samples of a prompt, else 128 x 1; of demonstrations 32 and three passes
        over the records. Raises UsageError where the method samples and no reward scores the samples."""
        grouped, imitates = bool(traits.get("grouped")), bool(traits.get("imitates"))
        if self.sampled and not (self.rewards or imitates):
            raise UsageError(
                f"the task {self.name} has no reward: --reward FILE.py:FUNCTION, or exact, numeric, math, regex; only a method that"
                " imitates answers, such as sft, needs none"
            )
        if imitates:
            for i, record in enumerate(self.records):
                self._reference(record, self._where(self.records, i))
        return {
            "lr": 1e-4 if traits.get("lora") else 1e-5,
            "requests": 32 if imitates else 16 if grouped else 128,
            "samples": 8 if grouped else 1,
            "horizon": self.max_new,
            "epochs": 1,
            "steps": math.ceil(3 * len(self.records) / 32) if imitates else 200,
        }

    def show_prompt(self, policy: Any) -> str:
        """Return the first training prompt as the model reads it."""
        return policy.tokenizer.decode(encode_record(policy, self.records[0]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the pool keeps which record comes next."""


def as_prompt(task: TextTask, text: str) -> str | list[dict[str, str]]:
    """Write text as the prompts of a task are: plain, or as a user message, after the task's system message."""
    if isinstance(task.records[0]["prompt"], str):
        return text
    before = [] if task.system is None else [{"role": "system", "content": task.system}]
    return [*before, {"role": "user", "content": text}]


def pack_known_answers(
    policy: Any, records: Sequence[dict[str, Any]], cue: str | None, device: torch.device
) -> dict[str, Tensor]:
    """Pack what a completion is to lead to, for methods that measure progress towards it.

    Args:
        policy: encodes.
        records: with an `answer`.
        cue: text before the answer.
        device: of the tensors.
    """
    begun = [] if cue is None else policy.encode_hint(cue)
    answer, size = pad([begun + policy.encode_hint(record["answer"]) for record in records], device)
    cue_length = torch.full_like(size, -1 if cue is None else len(begun))
    return {"answer": answer, "answer_length": size, "cue_length": cue_length}


def describe_completions(
    rewards: Sequence[Reward], texts: Sequence[str], done: Any, scores: Tensor, score: Tensor
) -> dict[str, float]:
    """Describe sampled completions.

    reward: mean score; reward/NAME: mean of a channel; reward_missing: share of missing channel entries; length: mean tokens; truncated:
    share cut by the budget; empty: share without text; tokens: all sampled tokens; reward_failed/NAME: calls that failed so far, of
    rewards whose failures do not end the run.

    Args:
        rewards: one per channel.
        texts, done: the completions.
        scores: of all channels.
        score: their weighted sum.
    """
    channels = {f"reward/{r.name}": float(x) for r, x in zip(rewards, scores.nanmean(0), strict=True)}
    failures = {f"reward_failed/{r.name}": float(r.failures) for r in rewards if r.on_error != "raise"}
    return {
        "reward": float(score.nanmean()),
        **channels,
        **failures,
        "reward_missing": float(scores.isnan().float().mean()),
        "length": float(done.lengths.float().mean()),
        "truncated": float((~done.stopped).float().mean()),
        "empty": sum(not t.strip() for t in texts) / len(texts),
        "tokens": float(done.lengths.sum()),
    }


def join_prefixes(
    done: Sample, prefixes: Sequence[Trajectories | None], begun: Sequence[list[int]], group: Int[Tensor, " row"]
) -> Sample:
    """Put the beginnings that completions continue in front of them, with the log-probs of the policy that sampled those.

    Args:
        done: the continuations.
        prefixes: one row per request, or None.
        begun: token ids of the beginnings, per request.
        group: the request of every completion.
    """
    pieces = []
    for i, g in enumerate(group.tolist()):
        prefix, new = prefixes[g], int(done.lengths[i])
        old = (
            done.logp.new_zeros(0) if prefix is None or prefix.logp_old is None else prefix.logp_old[0, prefix.valid[0]]
        )
        ids = torch.cat([done.ids.new_tensor(begun[g]), done.ids[i, :new]])
        pieces.append((ids, torch.cat([old, done.logp[i, :new]])))
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in pieces], batch_first=True)
    logp = torch.nn.utils.rnn.pad_sequence([logp for _, logp in pieces], batch_first=True)
    lengths = torch.tensor([len(x) for x, _ in pieces], device=ids.device)
    return Sample(ids=ids, lengths=lengths, logp=logp, stopped=done.stopped)


def combine(scores: Float[Tensor, "row channel"], weights: Float[Tensor, " channel"]) -> Float[Tensor, " row"]:
    """score = sum_k w_k r_k over the channels that are not missing; NaN where all are."""
    missing = scores.isnan()
    total = (torch.where(missing, 0.0, scores) * weights).sum(1)
    return torch.where(missing.all(1), torch.nan, total)


def _texts(policy: Any, done: Any) -> list[str]:
    return [policy.decode(row[:n]) for row, n in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)]
