"""What is read from a language model beside its decisions: progress to an answer, mismatched answers, scores, curvature, hidden prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.ops.log_ratio import last_value
from anypo.policies.curvature import Moments, step_products
from anypo.policies.language.backbone import Backbone
from anypo.policies.language.filter import Filter
from anypo.policies.language.forward import decision_states, join_text
from anypo.policies.language.text import Prompt
from anypo.protocols import Policy
from anypo.types import Trajectories

LOGITS_AT_ONCE = 2**25
"""Of decisions whose curvature is computed together."""


TOKENS_AT_ONCE = 16384
"""Of mismatched answers that are read together."""


@torch.no_grad()
def answer_progress(policy: Policy, b: Trajectories, segments: int = 4) -> Float[Tensor, "row step"]:
    """C_k - C_{k-1} on the decisions of segment k: how much the segment raised the probability of the right answer.

    C_k = pi(answer | prompt, completion up to cut k, cue), a product over the answer's tokens. Cuts fall so that every
    segment holds about as many of the row's tokens of above-median entropy. Without a cue the completion is the answer
    itself: then C_k is the probability of what remains of it, and 0 once it went wrong. Trace: answer [N, A] (cue first),
    answer_length [N], cue_length [N] (-1 without a cue).
    Source: GRPO-VPS, arXiv 2604.20659.
    """
    if "answer" not in b.trace:
        raise UsageError("the method measures progress towards a known answer, and the records have no `answer`")
    valid = b.valid
    part = entropy_segments(policy.evaluate(b, {"entropy"})["entropy"], valid, segments)
    cuts = torch.stack([(valid & (part < k)).sum(1) for k in range(segments + 1)], 1)
    belief = torch.stack([answer_probability(policy, b.trace, cuts[:, k]) for k in range(segments + 1)], 1)
    gain = belief.diff(dim=1)
    return torch.where(valid, gain.gather(1, part.clamp(max=segments - 1)), 0.0)


def entropy_segments(
    entropy: Float[Tensor, "row step"], valid: Bool[Tensor, "row step"], segments: int
) -> Int[Tensor, "row step"]:
    """Return the segment of every decision; tokens of above-median entropy are spread evenly over a row's segments.

    Args:
        entropy: nats.
        valid: which steps are decisions.
        segments: of a row.
    """
    median = torch.where(valid, entropy, torch.nan).nanmedian(1, keepdim=True).values
    high = valid & (entropy >= median)
    before = high.cumsum(1) - high.long()
    return (segments * before // high.sum(1, keepdim=True).clamp(min=1)).clamp(max=segments - 1)


def answer_probability(policy: Policy, trace: dict[str, Tensor], cut: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """C = pi(answer | prompt, the first `cut` tokens of the completion, cue); see `answer_progress`."""
    answer, length, cue = trace["answer"], trace["answer_length"], trace["cue_length"]
    prompt, start, completion = trace["prompt"], trace["prompt_length"], trace["completion"]
    place = torch.arange(answer.shape[1], device=answer.device)
    direct = cue < 0
    skipped = torch.where(direct, cut.minimum(length), cue)  # tokens of `answer` that are no part of the product
    probe = Trajectories(
        mask=(place >= skipped[:, None]) & (place < length[:, None]),
        trace={
            "prompt": join_text(prompt, start, completion),
            "prompt_length": start + torch.where(direct, 0, cut),
            "completion": answer,
        },
    )
    logp = policy.evaluate(probe, {"logp"})["logp"].sum(1)
    written = torch.nn.functional.pad(completion, (0, max(0, answer.shape[1] - completion.shape[1])))
    right = (written[:, : answer.shape[1]] == answer) | (place >= cut.minimum(length)[:, None])
    return torch.where(direct & ~right.all(1), 0.0, logp.exp())


@torch.no_grad()
def mismatched_logp(policy: Policy, b: Trajectories) -> Float[Tensor, " row"]:
    """log pi (nats) of another answer after each row's prompt: that of the next row of another group, around the end.

    Source: KTO, arXiv 2402.01306, sec. 4.2.
    """
    rows = torch.arange(b.shape[0], device=b.valid.device)
    after = (rows - rows[:, None] - 1) % len(rows)  # how many rows further
    same = torch.zeros_like(after, dtype=torch.bool) if b.group is None else b.group[:, None] == b.group
    after = torch.where(same & ~same.all(), len(rows) + after, after)
    other = after.argmin(1)
    swapped = Trajectories(
        mask=b.valid[other],
        trace={name: b.trace[name] for name in ("prompt", "prompt_length")}
        | {"completion": b.trace["completion"][other]},
    )
    chunks = rows.split(max(1, TOKENS_AT_ONCE // max(b.shape[1], 1)))
    return torch.cat([policy.evaluate(swapped.rows(chunk), {"logp"})["logp"].sum(1) for chunk in chunks])


@torch.no_grad()
def score_answers(policy: Any, prompts: Sequence[Prompt], answers: Sequence[str], at_once: int = 32) -> list[float]:
    """Return what the first value head gives at the end of each answer: a reward model's score.

    Args:
        policy: a language model with a value head.
        prompts: of the answers.
        answers: text.
        at_once: answers read together.
    """
    scores: list[float] = []
    for i in range(0, len(prompts), at_once):
        asked, written = prompts[i : i + at_once], answers[i : i + at_once]
        ids = [policy.encode_answer(p, a) for p, a in zip(asked, written, strict=True)]
        b = policy.pack([policy.encode(p) for p in asked], ids)
        scores += last_value(b, policy.evaluate(b, {policy.heads[0]})[policy.heads[0]]).tolist()
    return scores


@torch.no_grad()
def curvature_products(
    backbone: Backbone, filter: Filter, b: Trajectories, moments: Moments | None
) -> dict[str, Float[Tensor, "row step"]]:
    """Compute `step_along` and `step_spread` of every decision.

    Args:
        backbone: the model, whose logits have to be linear in its last layer.
        filter: of the logits.
        b: rows with advantages.
        moments: what the optimizer remembers; see `curvature.step_products`.
    """
    if not backbone.splits:
        raise UsageError(
            f"the curvature of a step needs logits that are linear in the last layer; {backbone.name} bends them"
        )
    advantage, states = b.need("advantage"), decision_states(backbone, b)
    pieces, vocabulary = [], backbone.vocabulary
    for part in torch.arange(len(states.row)).split(max(1, LOGITS_AT_ONCE // vocabulary)):
        row, step, hidden = states.row[part], states.step[part], states.read[part]
        taken = b.trace["completion"][row, step]
        logps = filter(backbone.head()(hidden), keep=taken)
        pieces.append(step_products(hidden.to(logps.dtype), logps, taken, advantage[row, step], moments))
    products = {k: torch.cat([piece[k] for piece in pieces]) for k in pieces[0]} if pieces else {}
    return {k: x.new_zeros(b.shape).index_put((states.row, states.step), x) for k, x in products.items()}


def hide_prompt_tokens(b: Trajectories, token: int, share: float, generator: torch.Generator) -> Trajectories:
    """Replace every token of the prompts by another one with probability `share`.

    Args:
        b: rows.
        token: the other one.
        share: of the tokens.
        generator: of the draws.
    """
    prompt = b.trace["prompt"]
    hidden = torch.rand(prompt.shape, generator=generator).to(prompt.device) < share
    return b.but(trace={**b.trace, "prompt": prompt.masked_fill(hidden, token)})
