"""Temperature, top-k and top-p, over the tokens that have text."""

from __future__ import annotations

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
        """Return log-probabilities (nats, at least float32; -inf outside the support). `keep` stays in the support."""
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
        """Return the smallest logit kept, [token, 1]; None keeps all."""
        top_k = self.top_k if self.top_k < logits.shape[1] else 0
        if self.top_p < 1:
            ordered = logits.topk(top_k or logits.shape[1]).values
            p = ordered.softmax(-1)
            kept = (p.cumsum(-1) - p < self.top_p).sum(-1, keepdim=True).clamp(min=1)
            return ordered.gather(1, kept - 1)
        return logits.topk(top_k).values[:, -1:] if top_k else None


@dataclass(frozen=True, eq=False)
class KnownTokens(Filter):
    """A filter that leaves out tokens without text. unknown: which they are."""

    unknown: Bool[Tensor, " vocab"] | None = None

    def __call__(
        self, logits: Float[Tensor, "token vocab"], keep: Int[Tensor, " token"] | None = None
    ) -> Float[Tensor, "token vocab"]:
        """Return log-probabilities as `Filter` does, -inf for unknown tokens."""
        return super().__call__(logits if self.unknown is None else logits.masked_fill(self.unknown, -torch.inf), keep)


def find_unknown(tokenizer: Any, vocabulary: int) -> Bool[Tensor, " vocab"] | None:
    """Return which of a model's tokens its tokenizer does not know, often the last ones; None where it knows all."""
    unknown = torch.ones(vocabulary, dtype=torch.bool)
    unknown[[token for token in tokenizer.get_vocab().values() if token < vocabulary]] = False
    return unknown if bool(unknown.any()) else None
