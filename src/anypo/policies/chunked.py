"""The output layer in chunks: functionals of the next-token distribution without keeping [token, vocabulary]."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anypo.policies.sampling import Filter

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

    def piece(h: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        logp = filter(head(h), keep=token)
        found = []
        if "logp" in want:
            found.append(logp.gather(1, token[:, None])[:, 0])
        if "entropy" in want:
            found.append(-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1))
        if "score_norm" in want:
            found.append(1 - 2 * logp.gather(1, token[:, None])[:, 0].exp() + (2 * logp).exp().sum(-1))
        return tuple(found)

    names = [name for name in OFFERED if name in want]
    tokens = max(1, chunk // vocabulary)
    if len(hidden) <= tokens:
        return dict(zip(names, piece(hidden, taken), strict=True))
    pairs = zip(hidden.split(tokens), taken.split(tokens), strict=True)
    pieces = [checkpoint(piece, h, token, use_reentrant=False, preserve_rng_state=False) for h, token in pairs]
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}
