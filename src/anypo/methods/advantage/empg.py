"""EMPG: GRPO whose credit is larger on steps the policy was sure of."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import Baseline, Combine, EntropyModulate

empg = register_method(
    grpo.but(
        credit=[
            Combine(),
            Baseline("group", center="mean", scale="std"),
            EntropyModulate(k=1.0, k_next=1.0, zeta=0.05),
        ],
        terms=[],
        card=Card(
            id="empg",
            title="Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents",
            year=2025,
            arxiv="2509.09265",
            family="advantage",
            equation="A_step = A_i g(H_step) + zeta f(H_next), minus its batch mean;  g = e^{-k H} / mean e^{-k H}, f = e^{-k' H}",
            source="arXiv 2509.09265, eq. 6 to 8",
            claim="8.1 points over GRPO on a household text game and no late divergence.",
            claims=(
                Claim(
                    "Long rows with one decisive step are learned faster than with GRPO.",
                    "horizon",
                    "curve",
                    against="grpo",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
        ),
    )
)
