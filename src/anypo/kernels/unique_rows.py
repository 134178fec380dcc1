"""Equal rows of a batch, computed once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anypo.kernels import kernel

FACTOR = -0x61C8864680B583EB
"""Base of the hash: odd, so that no power of it is 0 in 64 bits."""


def sorted_unique_rows(x: Int[Tensor, "row column"]) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]]:
    """Return the first row of every kind of equal rows, and the kind of every row."""
    kinds, kind = torch.unique(x, dim=0, return_inverse=True)
    return _first_rows(kind, len(kinds)), kind


@kernel(sorted_unique_rows)
def unique_rows(x: Int[Tensor, "row column"]) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]]:
    """Return the first row of every kind of equal rows, and the kind of every row; kinds are numbered in any order.

    Sorting numbers is many times faster than sorting rows, so rows are compared by a hash; should two kinds share one, they are sorted.
    """
    hashes = (x * torch.full(x.shape[1:], FACTOR, device=x.device).cumprod(0)).sum(1)
    kinds, kind = torch.unique(hashes, return_inverse=True)
    first = _first_rows(kind, len(kinds))
    return (first, kind) if torch.equal(x[first[kind]], x) else sorted_unique_rows(x)


def _first_rows(kind: Int[Tensor, " row"], kinds: int) -> Int[Tensor, " kind"]:
    """Return the first row of every kind."""
    rows = torch.arange(len(kind), device=kind.device)
    return torch.full_like(rows[:kinds], len(rows)).scatter_reduce(0, kind, rows, "amin")


def keep_rows(
    trace: dict[str, Tensor], valid: Bool[Tensor, "row step"]
) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]] | None:
    """Return None: every row is evaluated."""
    return None


@kernel(keep_rows)
def dedupe(
    trace: dict[str, Tensor], valid: Bool[Tensor, "row step"]
) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]] | None:
    """Apply `unique_rows` to rows of text: same prompt, same decisions, same tokens up to the last of them.

    Returns None where that leaves out less than a quarter of the rows.
    """
    read = valid.flip(1).cumsum(1).flip(1) > 0
    completion = trace["completion"].masked_fill(~read, 0)
    text = [trace["prompt_length"][:, None], trace["prompt"], valid.long(), completion]
    first, kind = unique_rows(torch.cat(text, 1))
    return (first, kind) if 4 * len(first) <= 3 * len(kind) else None
