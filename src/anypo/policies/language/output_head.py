"""Functionals of the next-token distribution, computed in chunks of the output layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.kernels.linear_head import chunked_linear, read_chunks
from anypo.policies.language.filter import Filter
from anypo.views import Functional, register_functionals

OFFERED = ("logp", "entropy", "score_norm")
register_functionals(*map(Functional, OFFERED))

CHUNK = 2**25
"""Logits held at once (128 MiB in float32)."""


def functionals(
    hidden: Float[Tensor, "token width"],
    head: Any,
    taken: Int[Tensor, " token"],
    filter: Filter,
    want: Collection[str],
    vocabulary: int,
    chunk: int = CHUNK,
) -> dict[str, Float[Tensor, " token"]]:
    """Compute `logp` of the taken token, `entropy` (nats) and squared `score_norm` of filter(head(hidden)), as far as wanted.

        logp = log p(taken),  entropy = -sum_v p(v) log p(v),  score_norm = 1 - 2 p(taken) + sum_v p(v)^2

    At most `chunk` logits exist at a time: each piece is computed again for the backward pass. Value and gradient are
    those of the dense computation.
    """

    names = [name for name in OFFERED if name in want]

    def read(logits: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        logp = filter(logits, keep=token)
        values = []
        if "logp" in want:
            values.append(logp.gather(1, token[:, None])[:, 0])
        if "entropy" in want:
            values.append(-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1))
        if "score_norm" in want:
            values.append(1 - 2 * logp.gather(1, token[:, None])[:, 0].exp() + (2 * logp).exp().sum(-1))
        return tuple(values)

    tokens = max(1, chunk // vocabulary)
    if len(hidden) <= tokens:
        values = read(head(hidden), taken)
    elif type(head) is torch.nn.Linear and head.bias is None and torch.is_grad_enabled():  # an adapter computes more
        values = chunked_linear(read, tokens, hidden, head.weight, taken)
    else:
        values = read_chunks(read, tokens, head, hidden, taken)
    return dict(zip(names, values, strict=True))
