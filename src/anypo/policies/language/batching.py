"""Pad rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def pad(ids: Sequence[Sequence[int]], device: Any) -> tuple[Int[Tensor, "row step"], Int[Tensor, " row"]]:
    """Pad token ids with zeros on the right; returns the tensor and the lengths."""
    width = max(map(len, ids))
    rows = [[*row, *[0] * (width - len(row))] for row in ids]
    return torch.tensor(rows, device=device), torch.tensor([len(row) for row in ids], device=device)
