"""PAPO: GRPO that is rewarded for answering differently when the input is hidden."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.reduce import Mean
from anypo.parts.terms import Divergence, Perception

papo = register_method(
    grpo.but(
        reduce=Mean("token"),
        terms=[Divergence("k3", anchor="ref", coef=0.01), Perception(coef=0.02, eta=0.0)],
        card=Card(
            id="papo",
            title="Perception-Aware Policy Optimization for Multimodal Reasoning",
            year=2025,
            arxiv="2507.06448",
            family="advantage",
            equation="L = L_GRPO - gamma KL(pi(. | x) || pi(. | x hidden)) + eta (H + H_hidden), KL by k3, 60% of x hidden",
            source="arXiv 2507.06448; MikeWangWZHL/PAPO, actor update",
            claim="4.4% better on average and about 8% where vision matters; 30.5% fewer perception errors than GRPO.",
            claims=(
                Claim(
                    "Being rewarded for depending on the input learns faster than GRPO.",
                    "learning",
                    "curve",
                    against="grpo",
                ),
            ),
            reduces=(Reduction("grpo", {"terms": []}, {"reduce": Mean("token"), "terms": []}),),
        ),
    )
)
