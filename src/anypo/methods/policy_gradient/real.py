"""REAL: rewards are labels; each group is a classification of its rows by their log-ratio."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.credit import Combine
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import GroupMean
from anypo.parts.trust import SetContrast

real = register_method(
    grpo.but(
        credit=[Combine()],
        ratio=LogRatio("row", how="mean"),
        trust=SetContrast(tau=0.5, degenerate="keep"),
        reduce=GroupMean(),
        terms=[],
        card=Card(
            id="real",
            title="Rewards as Labels: Revisiting RLVR from a Classification Perspective",
            year=2026,
            arxiv="2602.05630",
            equation="L = mean_g log(1 + sum_{right} e^{-s/tau}) + log(1 + sum_{wrong} e^{s/tau}),  s = mean_t log r",
            source="arXiv 2602.05630; modelscope/ms-swift, REAL documentation and grpo_trainer (loss_type real)",
            claim="Bounded, monotone weights: 6.7% over DAPO at 1.5B, 6.2% and 1.7% over DAPO and GSPO at 7B.",
            claims=(
                Claim(
                    "Gradient norms are flatter than GRPO's when batches are reused.",
                    "reuse",
                    "spike",
                    against="grpo",
                    better="lower",
                ),
            ),
        ),
    )
)
