"""The output layer in chunks, with a written-out gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(logits, taken tokens) -> functionals of each token."""


class ChunkedLinear(torch.autograd.Function):
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
