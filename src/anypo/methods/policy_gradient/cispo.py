"""CISPO: GRPO whose importance weight is capped and detached, so that no token ever loses its gradient."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.reduce import Mean
from anypo.parts.trust import TruncatedWeight

cispo = register_method(
    grpo.but(
        trust=TruncatedWeight(low=0.0, high=5.0),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="cispo",
            title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
            year=2025,
            arxiv="2506.13585",
            equation="L = -1/sum|o_i| sum_{i,t} sg(clip(r, 0, cap)) A_i log pi_t",
            source="arXiv 2506.13585, eq. 4 and 5; cap 5 without lower bound as in arXiv 2510.13786",
            claim="Twice as fast as DAPO at equal accuracy, because rare pivotal tokens keep their gradient.",
            claims=(
                Claim(
                    "Keeping a gradient for every decision learns faster than clipping when batches are reused.",
                    "reuse",
                    "curve",
                    against="grpo",
                ),
            ),
            weight=lambda r, a: r.clamp(0.0, 5.0) * a,
        ),
    )
)
