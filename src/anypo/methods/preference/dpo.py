"""DPO: of two answers the preferred one is made likelier than the other, both measured against the reference."""

from anypo.method import Card, Claim, register
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts import Combine, Each, LogRatio, PairContrast

dpo = register(
    grpo.but(
        credit=[Combine()],
        ratio=LogRatio("row", how="sum", anchor="ref"),
        trust=PairContrast("logistic", beta=0.1),
        reduce=Each(),
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
