"""Answers in data: their tokens after the prompt, and how likely a policy finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.tasks.text.records import encode_record, read_tools
from anypo.types import Trajectories

ANSWERS_AT_ONCE = 32
"""Answers evaluated together."""


Answer = tuple[list[int], list[int]]
"""Token ids of a prompt and of an answer, with the token that ends it."""


def encode_answer(
    policy: Any, record: dict[str, Any], answer: str, where: str, *, most: int | None = None, remedy: str = "shorten it"
) -> Answer:
    """Return the tokens of a record's prompt and of an answer to it.

    Args:
        policy: whose tokenizer and chat template are used.
        record: with the prompt.
        answer: text.
        where: the record in messages.
        most: tokens of the answer that are read (None: all).
        remedy: what to do about an answer that is too long.

    Raises:
        UsageError: something does not encode, or the two leave the model's context.
    """
    try:
        prompt = encode_record(policy, record)
        ids = policy.encode_answer(record["prompt"], answer, read_tools(record))[:most]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if not policy.fits(len(prompt), len(ids)):
        raise UsageError(
            f"{where} has {len(prompt)} tokens of prompt and {len(ids)} of an answer, more than the context of"
            f" {policy.context} tokens of {policy.name}; {remedy}"
        )
    return prompt, ids


def pack_answers(policy: Any, answers: Sequence[Answer]) -> Trajectories:
    """Put answers into rows."""
    return policy.pack([prompt for prompt, _ in answers], [ids for _, ids in answers])


def as_demonstrations(b: Trajectories, channels: int) -> Trajectories:
    """Mark rows of answers as demonstrations, each in a group of its own, without a score in any of the channels."""
    rows, device = b.shape[0], b.valid.device
    return b.but(
        logp_old=torch.zeros(b.shape, device=device),
        score=torch.full((rows,), torch.nan, device=device),
        scores=torch.full((rows, channels), torch.nan, device=device),
        group=torch.arange(rows, device=device),
        expert_mask=torch.ones(rows, dtype=torch.bool, device=device),
        truncated=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def evaluate_answers(
    policy: Any, answers: Sequence[Answer], functional: str, at_once: int = ANSWERS_AT_ONCE
) -> Iterator[tuple[Trajectories, Tensor]]:
    """Yield answers as rows, with one of the policy's functionals, [N, T].

    Args:
        policy: evaluates.
        answers: as tokens.
        functional: `logp`, or the name of a value head.
        at_once: rows that are evaluated together.
    """
    for at in range(0, len(answers), at_once):
        b = pack_answers(policy, answers[at : at + at_once])
        yield b, policy.evaluate(b, {functional})[functional]


@torch.no_grad()
def measure_likelihood(policy: Any, answers: Sequence[Answer]) -> dict[str, float]:
    """Measure how likely a policy finds answers.

    log_likelihood: mean log-probability of a token of an answer (nats), that which ends it included; the negative of the
    cross-entropy. perplexity: exp(-log_likelihood).
    """
    total = sum(float(x.double().sum()) for _, x in evaluate_answers(policy, answers, "logp"))
    mean = total / sum(len(ids) for _, ids in answers)
    return {"log_likelihood": mean, "perplexity": math.exp(min(-mean, 700.0))}
