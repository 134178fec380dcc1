"""The output layer in chunks, with a written-out gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from anypo.kernels import kernel

Read = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(logits, taken tokens) -> functionals of each token."""


class ChunkedLinear(torch.autograd.Function):
    """read(hidden W^T, taken) chunk by chunk; the chunks of the backward pass add to one gradient of W instead of making one
    each, which is as large as W."""

    @staticmethod
    def forward(ctx: Any, read: Read, tokens: int, hidden: Tensor, weight: Tensor, taken: Tensor) -> tuple[Tensor, ...]:
        device = hidden.device.type
        ctx.save_for_backward(hidden, weight, taken)
        ctx.read, ctx.tokens = read, tokens
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        pairs = zip(hidden.split(tokens), taken.split(tokens), strict=True)
        pieces = [read(linear(h, weight), token) for h, token in pairs]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, taken = ctx.saved_tensors
        _, _, to_hidden, to_weight, _ = ctx.needs_input_grad
        hidden_grads = []
        weight_grad = torch.zeros_like(weight) if to_weight else None
        with torch.autocast(ctx.autocast[0], ctx.autocast[1], ctx.autocast[2]):
            for h, token, *grad in zip(*(x.split(ctx.tokens) for x in (hidden, taken, *grads)), strict=True):
                with torch.enable_grad():
                    logits = linear(h.detach(), weight.detach()).requires_grad_()
                    values = ctx.read(logits, token)
                (logits_grad,) = torch.autograd.grad(values, logits, grad)
                del values, logits
                if to_hidden:
                    hidden_grads.append((logits_grad @ weight).to(h.dtype))
                if weight_grad is not None and logits_grad.dtype == weight_grad.dtype:
                    weight_grad.addmm_(logits_grad.T, h.to(weight_grad.dtype))
                elif weight_grad is not None:
                    weight_grad += logits_grad.T @ h.to(logits_grad.dtype)
        return None, None, torch.cat(hidden_grads) if to_hidden else None, weight_grad, None


def read_chunks(
    read: Read,
    tokens: int,
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "token width"],
    taken: Int[Tensor, " token"],
) -> tuple[Tensor, ...]:
    """Compute read(head(hidden), taken), `tokens` rows at a time; each chunk is computed again for the backward pass.

    Args:
        read, tokens, hidden, taken: as in `chunked_linear`.
        head: makes logits.
    """
    pieces = [
        checkpoint(lambda h, token: read(head(h), token), h, token, use_reentrant=False, preserve_rng_state=False)
        for h, token in zip(hidden.split(tokens), taken.split(tokens), strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def read_linear_chunks(
    read: Read,
    tokens: int,
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocab width"],
    taken: Int[Tensor, " token"],
) -> tuple[Tensor, ...]:
    """Compute read(hidden W^T, taken), `tokens` rows at a time, by `read_chunks`.

    Args:
        read, tokens, hidden, weight, taken: as in `chunked_linear`.
    """
    return read_chunks(read, tokens, lambda h: linear(h, weight), hidden, taken)


@kernel(read_linear_chunks)
def chunked_linear(
    read: Read,
    tokens: int,
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocab width"],
    taken: Int[Tensor, " token"],
) -> tuple[Tensor, ...]:
    """Compute read(hidden W^T, taken), `tokens` rows at a time, with the gradient of `ChunkedLinear`.

    Args:
        read: functionals of the tokens, given their logits and the taken tokens.
        tokens: rows whose logits exist at a time.
        hidden: what the output layer reads.
        weight: W of the output layer.
        taken: the token taken after each row of `hidden`.

    Returns:
        What `read` returns, for all rows.
    """
    return ChunkedLinear.apply(read, tokens, hidden, weight, taken)  # pyright: ignore[reportReturnType]
