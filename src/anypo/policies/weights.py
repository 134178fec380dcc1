"""Weights of a policy: snapshots, moving averages, swaps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PLACES: WeakKeyDictionary[nn.Module, list[tuple[str, dict[str, Any], str]]] = WeakKeyDictionary()
"""Modules and keys of a policy's trainable tensors: walking its modules costs more than a small network's update."""


def trainable_state(policy: nn.Module) -> dict[str, Tensor]:
    """Return all that training can change: trainable parameters and buffers, by name."""
    if policy not in PLACES:
        names = {name for name, p in policy.named_parameters() if p.requires_grad} | {
            n for n, _ in policy.named_buffers()
        }
        PLACES[policy] = [
            (full, held, key)
            for prefix, module in policy.named_modules()
            for held in (module._parameters, module._buffers)
            for key in held
            if (full := f"{prefix}.{key}" if prefix else key) in names
        ]
    return {name: held[key] for name, held, key in PLACES[policy]}


def first_bad_weight(policy: nn.Module) -> str | None:
    """Return the name of the first parameter that is not finite, or buffer that is NaN; None where there is none."""
    bad = (name for name, p in policy.named_parameters() if not bool(p.isfinite().all()))
    return next(bad, None) or next((name for name, x in policy.named_buffers() if bool(x.isnan().any())), None)


def snapshot(policy: nn.Module) -> dict[str, Tensor]:
    """Copy the policy's trainable state."""
    return {name: tensor.detach().clone() for name, tensor in trainable_state(policy).items()}


def ema(anchor: dict[str, Tensor], policy: nn.Module, decay: float) -> dict[str, Tensor]:
    """anchor' = decay * anchor + (1 - decay) * policy for floating-point tensors; others are copied."""
    live = snapshot(policy)
    if not decay:
        return live
    return {n: anchor[n].lerp(t, 1 - decay) if t.is_floating_point() else t for n, t in live.items()}


def ema_(anchor: dict[str, Tensor], policy: nn.Module, decay: float) -> None:
    """anchor = decay * anchor + (1 - decay) * policy in place, for anchors refreshed after every update."""
    live = trainable_state(policy)
    numbers = [name for name, tensor in live.items() if tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([anchor[n] for n in numbers], [live[n].detach() for n in numbers], 1 - decay)
        for name in live.keys() - set(numbers):
            anchor[name].copy_(live[name])


@contextmanager
def swap_params(policy: nn.Module, anchor: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the policy's tensors for the anchor's within the context; nothing is copied."""
    live = trainable_state(policy)
    places = PLACES[policy]
    for name, held, key in places:
        held[key] = anchor[name]
    try:
        yield
    finally:
        for name, held, key in places:
            held[key] = live[name]
