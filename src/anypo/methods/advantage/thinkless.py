"""Thinkless: the token that chooses how to answer and the answer are averaged apart."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.dr_grpo import dr_grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.reduce import Decoupled, Mean
from anypo.parts.terms import Divergence

thinkless = register_method(
    dr_grpo.but(
        reduce=Decoupled(alpha=1e-3),
        terms=[Divergence("k3", anchor="ref", coef=1e-3, over="token")],
        card=Card(
            id="thinkless",
            title="Thinkless: LLM Learns When to Think",
            year=2025,
            arxiv="2505.13379",
            family="advantage",
            equation="L = alpha mean over first tokens + mean over the others of clip-surrogate, + 1e-3 k3;  A_i = R_i - mean_group",
            source="arXiv 2505.13379; VainF/Thinkless, loss and reward",
            claim="Long thinking falls by 50 to 90% at about equal accuracy, without the choice of mode collapsing as in GRPO.",
            claims=(
                Claim(
                    "The policy keeps more variety than with Dr. GRPO, whose first decision moves as fast as all others.",
                    "retention",
                    "entropy",
                    against="dr-grpo",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
            reduces=(Reduction("dr-grpo", {"reduce": Mean("token"), "terms": []}, {"reduce": Mean("token")}),),
        ),
    )
)
