"""Preference data: pairs of answers to the same prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anypo.errors import UsageError
from anypo.types import Trajectories


@dataclass(slots=True)
class Comparisons:
    """B pairs of answers to the same prompt, as preference data come: the file and API form of two rows with a rank.

    logp_*, ref_logp_*, old_logp_*: log-probability (nats) of the whole answer, summed over its tokens, under the policy, the
    reference and the sampling policy. length_*: tokens of the answer. score_*: their rewards, or what a reward model that is
    learned gives them. win_rate: probability that the
    chosen one is better. weight: of the pair. kl_logp, ref_kl_logp: the same log-probabilities of any number of mismatched
    prompts and answers, from which KTO estimates its reference point.
    """

    logp_chosen: Float[Tensor, " pair"] | None = None
    logp_rejected: Float[Tensor, " pair"] | None = None
    ref_logp_chosen: Float[Tensor, " pair"] | None = None
    ref_logp_rejected: Float[Tensor, " pair"] | None = None
    old_logp_chosen: Float[Tensor, " pair"] | None = None
    old_logp_rejected: Float[Tensor, " pair"] | None = None
    length_chosen: Shaped[Tensor, " pair"] | None = None
    length_rejected: Shaped[Tensor, " pair"] | None = None
    score_chosen: Float[Tensor, " pair"] | None = None
    score_rejected: Float[Tensor, " pair"] | None = None
    win_rate: Float[Tensor, " pair"] | None = None
    weight: Float[Tensor, " pair"] | None = None
    kl_logp: Float[Tensor, " any"] | None = None
    ref_kl_logp: Float[Tensor, " any"] | None = None

    def rows(self) -> Trajectories:
        """Two rows of one decision per pair, chosen and rejected in turn, a group each; `preferred` marks the chosen ones."""
        like = self.score_chosen if self.logp_chosen is None else self.logp_chosen
        if like is None:
            raise UsageError(
                "the comparisons have neither `logp_chosen` nor `score_chosen`, so there is nothing to compare"
            )

        def both(name: str) -> Tensor | None:
            one, other = getattr(self, f"{name}_chosen"), getattr(self, f"{name}_rejected")
            return None if one is None or other is None else torch.stack([one, other], 1).flatten()

        def column(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.unsqueeze(1)

        preferred = (torch.arange(2 * len(like), device=like.device) % 2 == 0).to(like.dtype)
        extra = {"preferred": preferred}
        if (length := both("length")) is not None:
            extra["length"] = length.to(like.dtype)
        if self.win_rate is not None:
            extra["win_rate"] = self.win_rate.repeat_interleave(2)
        if self.kl_logp is not None and self.ref_kl_logp is not None:
            shift = (self.kl_logp - self.ref_kl_logp).detach().mean().clamp(min=0.0)
            extra["kl_shift"] = shift.expand(len(preferred))
        weight = None if self.weight is None else torch.stack([self.weight, torch.ones_like(self.weight)], 1).flatten()
        return Trajectories(
            logp=column(both("logp")),
            logp_ref=column(both("ref_logp")),
            logp_old=column(both("old_logp")),
            mask=torch.ones(len(preferred), 1, dtype=torch.bool, device=like.device),
            value=column(both("score")),
            score=both("score"),
            group=torch.arange(len(like), device=like.device).repeat_interleave(2),
            weight=column(weight),
            extra=extra,
        )
