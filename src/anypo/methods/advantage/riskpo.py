"""RiskPO: the scores of five prompts are added, and the lower part of their distribution is what is raised."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.credit import MixedValueAtRisk
from anypo.parts.knobs import TrackedQuantile
from anypo.parts.reduce import Mean
from anypo.parts.trust import Clip

riskpo = register_method(
    grpo.but(
        credit=[MixedValueAtRisk(levels=(0.2, 0.9), low=TrackedQuantile(0.2), high=TrackedQuantile(0.9))],
        trust=Clip(0.2, 0.2, dual=3.0),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="riskpo",
            title="RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
            year=2025,
            arxiv="2510.00911",
            family="advantage",
            equation="A = (w g_C + g_R) / (w + 1), scaled;  maximises (w CVaR_0.2 + RVaR_0.2:0.9) / (w + 1) of a bundle's score",
            source="arXiv 2510.00911; RTkenny/RiskPO, advantage function and tracker",
            claim="Risk-averse objectives slow the loss of entropy and raise pass@1 and pass@k over GRPO.",
            claims=(
                Claim("More of the policy's entropy is left than with GRPO.", "retention", "entropy", against="grpo"),
                Claim("The hardest fifth of the problems is solved more often.", "mixture", "worst", against="grpo"),
            ),
            ordered=True,
        ),
    )
)
