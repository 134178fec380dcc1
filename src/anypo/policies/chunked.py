"""The output layer in chunks: functionals of the next-token distribution without keeping [token, vocabulary]."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anypo.policies.sampling import Filter

OFFERED = ("logp", "entropy", "score_norm")
Read = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
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
        found = _Linear.apply(read, tokens, hidden, linear.weight, taken)
        return dict(zip(names, cast(tuple[Tensor, ...], found), strict=True))
    pairs = zip(hidden.split(tokens), taken.split(tokens), strict=True)
    pieces = [
        checkpoint(lambda h, t: read(head(h), t), h, token, use_reentrant=False, preserve_rng_state=False)
        for h, token in pairs
    ]
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}


class _Linear(torch.autograd.Function):
    """read(hidden W^T, taken) chunk by chunk; the chunks of the backward pass add to one gradient of W instead of making one
    each, which is as large as W."""

    @staticmethod
    def forward(ctx: Any, read: Read, tokens: int, hidden: Tensor, weight: Tensor, taken: Tensor) -> tuple[Tensor, ...]:
        kind = hidden.device.type
        ctx.save_for_backward(hidden, weight, taken)
        ctx.read, ctx.tokens = read, tokens
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        pairs = zip(hidden.split(tokens), taken.split(tokens), strict=True)
        pieces = [read(torch.nn.functional.linear(h, weight), token) for h, token in pairs]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, taken = ctx.saved_tensors
        _, _, to_hidden, to_weight, _ = ctx.needs_input_grad
        grads = []
        total = torch.zeros_like(weight) if to_weight else None
        with torch.autocast(ctx.autocast[0], ctx.autocast[1], ctx.autocast[2]):
            for h, token, *slope in zip(*(x.split(ctx.tokens) for x in (hidden, taken, *slopes)), strict=True):
                with torch.enable_grad():
                    logits = torch.nn.functional.linear(h.detach(), weight.detach()).requires_grad_()
                    found = ctx.read(logits, token)
                (slope_logits,) = torch.autograd.grad(found, logits, slope)
                del found, logits
                if to_hidden:
                    grads.append((slope_logits @ weight).to(h.dtype))
                if total is not None and slope_logits.dtype == total.dtype:
                    total.addmm_(slope_logits.T, h.to(total.dtype))
                elif total is not None:
                    total += slope_logits.T @ h.to(slope_logits.dtype)
        return None, None, torch.cat(grads) if to_hidden else None, total, None
