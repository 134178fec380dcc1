"""DPO: of two answers the preferred one is made likelier than the other, both measured against the reference."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.credit import Combine
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import GroupMean
from anypo.parts.trust import PairContrast

dpo = register_method(
    grpo.but(
        credit=[Combine()],
        ratio=LogRatio("row", how="sum", anchor="ref"),
        trust=PairContrast("logistic", beta=0.1),
        reduce=GroupMean(),
        terms=[],
        card=Card(
            id="dpo",
            title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            year=2023,
            arxiv="2305.18290",
            family="preference",
            equation="L = -log sigma(beta u),  u = log pi/ref (y_w) - log pi/ref (y_l)",
            source="arXiv 2305.18290, eq. 7",
            claim="The optimum is that of KL-regularised RLHF under the Bradley-Terry model.",
            claims=(
                Claim(
                    "Pairs of its own judged samples teach it within ten points of RLOO.",
                    "learning",
                    "success",
                    against="rloo",
                    margin=-0.1,
                ),
            ),
        ),
    )
)
