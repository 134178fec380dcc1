"""GRPO-VPS: GRPO that credits every segment with how much it raised the policy's belief in the right answer."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import AddProgress, Baseline, Combine

grpo_vps = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", center="mean", scale="std"), AddProgress(alpha=1.0)],
        terms=[],
        card=Card(
            id="grpo-vps",
            title="GRPO-VPS: Enhancing Group Relative Policy Optimization with Verifiable Process Supervision for Effective Reasoning",
            year=2026,
            arxiv="2604.20659",
            family="advantage",
            equation="A_t = A_i + alpha (C_k - C_{k-1}),  C_k = pi(y* | x, z_<=k, cue), for the tokens of segment k",
            source="arXiv 2604.20659, reading notes with the equations for progress and mixing; alpha = 1 is ours",
            confidence="reconstructed",
            claim="2.6 points more accuracy and 13.7% shorter answers on mathematics than GRPO.",
            claims=(
                Claim(
                    "Credit for progress learns long codes faster than GRPO.",
                    "learning",
                    "curve",
                    against="grpo",
                    settings={"length": 5},
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
            reduces=(Reduction("grpo", {"credit": [Combine(), Baseline("group"), AddProgress(0.0)]}, {"terms": []}),),
        ),
    )
)
