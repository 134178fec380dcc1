"""REC: group REINFORCE needs no importance weight off its own policy, only a mask on steps that have gone far enough."""

import torch

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.credit import Baseline, Combine
from anypo.parts.reduce import Mean
from anypo.parts.trust import MaskedLikelihood


def weight(r: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return A where the ratio has not left [0.8, 1.2] in the direction that A rewards."""
    return torch.where(((a > 0) & (r <= 1.2)) | ((a < 0) & (r >= 0.8)), a, 0.0)


rec = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", center="mean", scale=None)],
        trust=MaskedLikelihood(mask="one-side", weight="none", low=0.2, high=0.2),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="rec",
            title="Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm: Demystifying Some Myths About GRPO and Its Friends",
            year=2025,
            arxiv="2509.24203",
            equation="L = -token-mean M w A log pi,  M = 1[A>0, r<=1+eps] + 1[A<0, r>=1-eps], w = 1;  A_i = s_i - mean",
            source="arXiv 2509.24203; modelscope/Trinity-RFT, rec_gsm8k configurations; RED-Drop: balanced-drop before the baseline",
            claim="Clipping is what tolerates stale data: without importance weights nothing changes, without clipping training collapses.",
            claims=(
                Claim(
                    "Without importance weights stale data cost no more than five points against Dr. GRPO, which has them.",
                    "staleness",
                    "success",
                    against="dr-grpo",
                    margin=-0.05,
                ),
            ),
            weight=weight,
            reduces=(
                Reduction(
                    "dr-grpo",
                    {"trust": MaskedLikelihood(weight="ratio")},
                    {"reduce": Mean("token")},
                ),
            ),
        ),
    )
)
