"""From next-token logits to sampled tokens: the filtered distribution, one draw per row, and the generation loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.errors import UsageError


@dataclass(frozen=True)
class Filter:
    """The distribution tokens are sampled from: softmax(logits / temperature) restricted to likely tokens.

    top_k keeps the k most likely tokens (0: all). top_p then keeps the smallest set of most likely tokens whose
    probability reaches p (Holtzman et al. 2020, arXiv:1904.09751). Tokens tied with the last one kept stay in.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UsageError(f"temperature must be positive, not {self.temperature}; ask for greedy sampling instead")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(f"need top_k >= 0 and 0 < top_p <= 1, not top_k={self.top_k} and top_p={self.top_p}")

    def __call__(
        self, logits: Float[Tensor, "token vocab"], keep: Int[Tensor, " token"] | None = None
    ) -> Float[Tensor, "token vocab"]:
        """Log-probabilities (nats, at least float32; -inf outside the support). `keep` stays in the support."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.temperature != 1:
            logits = logits / self.temperature
        least = self._least(logits.detach())
        if least is not None:
            out = logits.detach() < least
            if keep is not None:
                out.scatter_(1, keep[:, None], False)
            logits = logits.masked_fill(out, -torch.inf)
        return logits.log_softmax(-1)

    def _least(self, logits: Tensor) -> Tensor | None:
        """The smallest logit kept, [token, 1]; None keeps all."""
        top_k = self.top_k if self.top_k < logits.shape[1] else 0
        if self.top_p < 1:
            ordered = logits.topk(top_k or logits.shape[1]).values
            p = ordered.softmax(-1)
            kept = (p.cumsum(-1) - p < self.top_p).sum(-1, keepdim=True).clamp(min=1)
            return ordered.gather(1, kept - 1)
        return logits.topk(top_k).values[:, -1:] if top_k else None


def draw(p: Float[Tensor, "row vocab"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The token at quantile u in [0, 1) of each row; tokens of probability 0 are never drawn."""
    cdf = p.double().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=p.shape[1] - 1)


@dataclass(slots=True)
class Sample:
    """Sampled completions, the samples of a prompt together.

    ids: right-padded tokens as sampled, terminator included. lengths: tokens per row. logp: log-probability (nats) of
    each token under the distribution it was drawn from, 0 beyond the length. stopped: ended by itself, not by the
    budget.
    """

    ids: Int[Tensor, "row step"]
    lengths: Int[Tensor, " row"]
    logp: Float[Tensor, "row step"]
    stopped: Bool[Tensor, " row"]

    @property
    def mask(self) -> Bool[Tensor, "row step"]:
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


Forward = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(ids, attention mask, positions, cache) -> (logits of the last position [row, vocab], cache)."""


@torch.no_grad()
def generate(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[int],
    generator: torch.Generator,
    *,
    filter: Filter,
    max_new: int,
    greedy: bool,
    eos: Int[Tensor, " eos"],
    stops: Callable[[Int[Tensor, "live tail"]], Bool[Tensor, " live"]] | None = None,
) -> Sample:
    """Sample completions token by token; `stops` says which rows a stop string has just ended.

    Every prompt is read once, then its cache is repeated for its samples. Rows that have ended leave the cache whenever
    they are half of it. The draws of a row depend on its place in the batch, not on when other rows end.
    """
    device = eos.device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, cache = forward(ids, mask, positions, None)

    origin = torch.repeat_interleave(torch.tensor(list(samples), device=device))
    n = len(origin)
    if n != len(prompts) or min(samples) != 1:
        cache.reorder_cache(origin)
        logits = logits[origin]
    mask = torch.cat([mask[origin], mask.new_ones(n, max_new)], 1)
    position = positions[origin, -1]

    tokens = torch.zeros(n, max_new, dtype=torch.long, device=device)
    logp = torch.zeros(n, max_new, device=device, dtype=torch.promote_types(logits.dtype, torch.float32))
    lengths = torch.full((n,), max_new, device=device)
    stopped = torch.zeros(n, dtype=torch.bool, device=device)
    rows = torch.arange(n, device=device)  # the rows that still have a place in the cache
    live = torch.ones_like(stopped)  # which of them are still being written

    for t in range(max_new):
        distribution = filter(logits)
        if greedy:
            token = distribution.argmax(-1)
        else:
            u = torch.rand(n, dtype=torch.float64, device=generator.device, generator=generator).to(device)
            token = draw(distribution.exp(), u[rows])
        taken = distribution.gather(1, token[:, None])[:, 0]
        tokens[rows, t] = torch.where(live, token, 0)
        logp[rows, t] = torch.where(live, taken, 0.0)

        ended = torch.isin(token, eos)
        if stops is not None:
            ended |= stops(tokens[rows, : t + 1])
        ended &= live
        lengths[rows] = torch.where(ended, t + 1, lengths[rows])
        stopped[rows] |= ended
        live &= ~ended
        left = int(live.sum())  # the one wait for the device in a step
        if left == 0 or t + 1 == max_new:
            break
        if 2 * left <= len(rows):
            stay = live.nonzero()[:, 0]
            rows, live, token, mask, position = rows[stay], live[stay], token[stay], mask[stay], position[stay]
            cache.reorder_cache(stay)
        position = position + 1
        logits, cache = forward(token[:, None], mask[:, : width + t + 1], position[:, None], cache)

    longest = int(lengths.max())
    return Sample(tokens[:, :longest], lengths, logp[:, :longest], stopped)


def padded(ids: Sequence[Sequence[int]], device: Any) -> tuple[Int[Tensor, "row step"], Int[Tensor, " row"]]:
    """Token ids as one tensor, zeros on the right, and their lengths."""
    width = max(map(len, ids))
    rows = [[*row, *[0] * (width - len(row))] for row in ids]
    return torch.tensor(rows, device=device), torch.tensor([len(row) for row in ids], device=device)
