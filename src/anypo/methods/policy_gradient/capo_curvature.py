"""CAPO: GRPO without the tokens whose own step would change policy or objective too much."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import Baseline, Combine, KeepStable
from anypo.parts.step import Adam

capo_curvature = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", center="mean", scale="std"), KeepStable(kl=1e-4, gain=1e-2)],
        step=Adam(warmup=10),  # before Adam remembers anything every single decision would take a full step
        terms=[],
        card=Card(
            id="capo-curvature",
            title="Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
            year=2025,
            arxiv="2510.00819",
            equation="GRPO over the tokens with m_F = a^2/2 (v.Gh)^2 < tau_F and |m_H| < tau_H, G the token's own step",
            source="arXiv 2510.00819, eq. 7 to 10; luckeciano/stable-pg-llm, grpo_entropy_trainer.py",
            claim="Rejecting under 8% of the tokens keeps aggressive updates stable and is up to 30 times more sample efficient.",
            claims=(
                Claim(
                    "Leaving out decisions with curved steps ends better than GRPO at a large learning rate.",
                    "large-steps",
                    "success",
                    against="grpo",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
            reduces=(Reduction("grpo", {}, {"terms": []}),),
        ),
    )
)
