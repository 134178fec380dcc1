"""Weights of a policy: snapshots, moving averages, swaps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PLACES: WeakKeyDictionary[nn.Module, list[tuple[str, dict[str, Any], str]]] = WeakKeyDictionary()
"""Where the moving tensors of a policy hang: walking its modules costs more than a small network's update."""


def trainable_state(policy: nn.Module) -> dict[str, Tensor]:
    """Everything training can change: trainable parameters and buffers, by name."""
    if policy not in PLACES:
        kept = {name for name, p in policy.named_parameters() if p.requires_grad} | {
            n for n, _ in policy.named_buffers()
        }
        PLACES[policy] = [
            (full, held, key)
            for prefix, module in policy.named_modules()
            for held in (module._parameters, module._buffers)
            for key in held
            if (full := f"{prefix}.{key}" if prefix else key) in kept
        ]
    return {name: held[key] for name, held, key in PLACES[policy]}


def snapshot(policy: nn.Module) -> dict[str, Tensor]:
    """A frozen copy of the policy as it is now."""
    return {name: tensor.detach().clone() for name, tensor in trainable_state(policy).items()}


def ema(anchor: dict[str, Tensor], policy: nn.Module, decay: float) -> dict[str, Tensor]:
    """decay * anchor + (1 - decay) * policy, on everything that is a number with a fraction; the rest is copied."""
    live = snapshot(policy)
    if not decay:
        return live
    return {n: anchor[n].lerp(t, 1 - decay) if t.is_floating_point() else t for n, t in live.items()}


def ema_(anchor: dict[str, Tensor], policy: nn.Module, decay: float) -> None:
    """The same in place, for anchors that follow every update."""
    live = trainable_state(policy)
    numbers = [name for name, tensor in live.items() if tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([anchor[n] for n in numbers], [live[n].detach() for n in numbers], 1 - decay)
        for name in live.keys() - set(numbers):
            anchor[name].copy_(live[name])


@contextmanager
def swap_params(policy: nn.Module, anchor: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the policy computes with the anchor's weights: they hang where its own did, nothing is copied."""
    live = trainable_state(policy)
    places = PLACES[policy]
    for name, held, key in places:
        held[key] = anchor[name]
    try:
        yield
    finally:
        for name, held, key in places:
            held[key] = live[name]
