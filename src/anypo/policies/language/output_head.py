"""Functionals of the next-token distribution, computed in chunks of the output layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anypo.kernels.linear_head import ChunkedLinear
from anypo.policies.language.filter import Filter

OFFERED = ("logp", "entropy", "score_norm")

CHUNK = 2**25
"""Logits held at once (128 MiB in float32)."""


def functionals(
    hidden: Float[Tensor, "token width"],
    head: Callable[[Tensor], Tensor],
    taken: Int[Tensor, " token"],
    filter: Filter,
    want: Collection[str],
    vocabulary: int,
    chunk: int = CHUNK,
) -> dict[str, Float[Tensor, " token"]]:
    """`logp` of the taken token, `entropy` (nats) and squared `score_norm` of filter(head(hidden)), as far as wanted.

        logp = log p(taken),  entropy = -sum_v p(v) log p(v),  score_norm = 1 - 2 p(taken) + sum_v p(v)^2

    At most `chunk` logits exist at a time: each piece is computed again for the backward pass. Value and gradient are
    those of the dense computation.
    """

    names = [name for name in OFFERED if name in want]

    def read(logits: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        logp = filter(logits, keep=token)
        found = []
        if "logp" in want:
            found.append(logp.gather(1, token[:, None])[:, 0])
        if "entropy" in want:
            found.append(-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1))
        if "score_norm" in want:
            found.append(1 - 2 * logp.gather(1, token[:, None])[:, 0].exp() + (2 * logp).exp().sum(-1))
        return tuple(found)

    tokens = max(1, chunk // vocabulary)
    if len(hidden) <= tokens:
        return dict(zip(names, read(head(hidden), taken), strict=True))
    linear: Any = head if type(head) is torch.nn.Linear else None  # an adapter computes more than that
    if linear is not None and linear.bias is None and torch.is_grad_enabled():
        found = ChunkedLinear.apply(read, tokens, hidden, linear.weight, taken)
        return dict(zip(names, cast(tuple[Tensor, ...], found), strict=True))
    pairs = zip(hidden.split(tokens), taken.split(tokens), strict=True)
    pieces = [
        checkpoint(lambda h, t: read(head(h), t), h, token, use_reentrant=False, preserve_rng_state=False)
        for h, token in pairs
    ]
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}
