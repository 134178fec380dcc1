"""Autocast where the hardware is fast at it."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch

from anypo.protocols import Multiplies
from anypo.runs.run import Run


def precision(run: Run) -> torch.dtype:
    """Return what the network's products are rounded to."""
    weight = next(run.policy.parameters())
    with autocast(run):
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast of the network where it is wanted and the hardware is fast at it; the weights stay what they are."""
    device = run.device.type
    if run.config.autocast == "on" or (run.config.autocast == "auto" and fast_in_bfloat16(device, run.policy)):
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


def fast_in_bfloat16(device: str, policy: Any) -> bool:
    """Whether the hardware multiplies bfloat16 several times as fast as float32: GPUs that can, and CPUs with AMX or
    AVX512-bf16 where the policy's products are large."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and isinstance(policy, Multiplies) and policy.large and cpu_has_bfloat16()


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AMX or AVX512-bf16)."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
