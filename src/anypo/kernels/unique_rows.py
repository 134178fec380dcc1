"""Equal rows of a batch, computed once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

FACTOR = -0x61C8864680B583EB
"""Base of the hash: odd, so that no power of it is 0 in 64 bits."""


def unique_rows(x: Int[Tensor, "row column"]) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]]:
    """(the first row of every kind of equal rows, the kind of every row).

    Sorting numbers is many times faster than sorting rows, so kinds are told apart by a hash; two that share one are noticed.
    """
    places = torch.arange(len(x), device=x.device)
    hashes = (x * torch.full(x.shape[1:], FACTOR, device=x.device).cumprod(0)).sum(1)
    for keys, dim in ((hashes, None), (x, 0)):
        kinds, line = torch.unique(keys, dim=dim, return_inverse=True)
        first = torch.full_like(places[: len(kinds)], len(x)).scatter_reduce(0, line, places, "amin")
        if torch.equal(x[first[line]], x):
            break
    return first, line


def dedupe(
    trace: dict[str, Tensor], valid: Bool[Tensor, "row step"]
) -> tuple[Int[Tensor, " kind"], Int[Tensor, " row"]] | None:
    """`alike` of the rows of text: same prompt, same decisions, same tokens up to the last of them. None where that leaves
    out less than a quarter of the rows."""
    seen = valid.flip(1).cumsum(1).flip(1) > 0
    said = trace["completion"].masked_fill(~seen, 0)
    first, line = unique_rows(torch.cat([trace["prompt_length"][:, None], trace["prompt"], valid.long(), said], 1))
    return (first, line) if 4 * len(first) <= 3 * len(line) else None
